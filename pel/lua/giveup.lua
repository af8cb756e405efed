-- Gives up the lease of a partition. Its generation stays.
--
-- KEYS  1 the group's hash
-- ARGV  1 consumer  2 generation, or '' whatever it is
-- Reply 1, or 0 where the consumer does not hold the lease
local lease = redis.call('HMGET', KEYS[1], 'lease-owner', 'lease-generation')
if lease[1] ~= ARGV[1] or (ARGV[2] ~= '' and lease[2] ~= ARGV[2]) then
  return 0
end
return redis.call('HDEL', KEYS[1], 'lease-owner', 'lease-until') > 0 and 1 or 0
