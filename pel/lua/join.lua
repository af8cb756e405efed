-- Lets a consumer join its group, unless a living member says that the group is of another
-- kind: one that leases partitions and one that does not would hand over each other's entries.
--
-- KEYS  1 the group's hash  2 the group's members
-- ARGV  1 consumer  2 kind (work, ordered)  3 after how many ms of silence a member is dead
-- Reply nothing, or the kind and a living member
local hash, members, consumer, kind = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local time = now()
local stands = redis.call('HGET', hash, 'kind')
if stands and stands ~= kind then
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', members, time - ARGV[3], '+inf')) do
    if name ~= consumer then
      return { stands, name }
    end
  end
end
if stands ~= kind then
  redis.call('HSET', hash, 'kind', kind)
end
redis.call('ZADD', members, ms(time), consumer)
return {}
