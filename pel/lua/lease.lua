-- Acquires or renews the lease of a partition.
--
-- KEYS  1 the group's hash  2 the stream  3 its retry stream
-- ARGV  1 group  2 consumer  3 the generation that it knows to be its own, or 0  4 how long
--       the lease lasts, in ms
-- Reply 1, generation, the ID up to which the group was handed entries of the stream, and of
--       the retry stream; or 0, owner, ms until its lease runs out
local hash, stream = KEYS[1], KEYS[2]
local group, consumer, known, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = now()
local lease = redis.call('HMGET', hash, 'lease-owner', 'lease-generation', 'lease-until')
local owner, generation, left = lease[1], lease[2] or '0', (tonumber(lease[3]) or 0) - time
if owner and owner ~= consumer and left > 0 then
  return { 0, owner, left }
end

-- handed returns the ID up to which the group was handed entries of a stream, or nil.
local function handed(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, g in ipairs(groups.err and {} or groups) do
    local one = info(g)
    if one.name == group then
      return one['last-delivered-id']
    end
  end
end
local main, retry = handed(stream), handed(KEYS[3])
if not main or not retry then
  return redis.error_reply('NOGROUP the stream, its retry stream or their group is missing')
end
if owner ~= consumer or generation ~= known then
  generation = ms(math.max(tonumber(generation) + 1, time))
end
redis.call('HSET', hash, 'lease-owner', consumer, 'lease-generation', generation, 'lease-until', ms(time + ttl))
return { 1, tonumber(generation), main, retry }
