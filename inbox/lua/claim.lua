#!lua
-- Takes the claim on an event, if nobody has it and nobody is done with it. Called again with the same token
-- after a lost reply, it gives the same answer.
--
-- KEYS  1 the claim: 'done', or the token of who has it
-- ARGV  1 token  2 lease in ms
-- Reply -1 it is done; 0 the claim is taken; else for how many ms it is still another's
local holder = redis.call('GET', KEYS[1])
if holder == 'done' then
  return -1
end
if holder and holder ~= ARGV[1] then
  return math.max(redis.call('PTTL', KEYS[1]), 1)
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 0
