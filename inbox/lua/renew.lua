#!lua
-- Gives a claim a new lease, or gives it up where that is 0, if it is still the caller's.
--
-- KEYS  1 the claim
-- ARGV  1 token  2 lease in ms
-- Reply 1, or 0 if it is not the caller's
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
