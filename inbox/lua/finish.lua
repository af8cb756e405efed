#!lua flags=allow-oom
-- Makes a claim 'done', also where its lease ran out and nobody took it since. The effect has happened: memory
-- that is full is no reason to forget it.
--
-- KEYS  1 the claim
-- ARGV  1 token  2 retention in ms
-- Reply 1, or 0 if the claim is another's
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= 'done' then
  return 0
end
redis.call('SET', KEYS[1], 'done', 'PX', ARGV[2])
return 1
