-- Acquires or renews the lease of a partition.
--
-- KEYS  1 the group's hash  2 the stream  3 its retry stream
-- ARGV  1 group  2 consumer  3 the generation that it knows to be its own, or 0  4 how long
--       the lease lasts, in ms
-- Reply 1, generation, the ID up to which the group was handed entries, how many that is (-1:
--       not known), and both for the retry stream; or 0, generation, ms until the lease of its
--       owner runs out, owner
local hash, stream = KEYS[1], KEYS[2]
local group, consumer, known, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = now()
local lease = redis.call('HMGET', hash, 'lease-owner', 'lease-generation', 'lease-until')
local owner, generation, left = lease[1], lease[2] or '0', (tonumber(lease[3]) or 0) - time
if owner and owner ~= consumer and left > 0 then
  return { 0, tonumber(generation), left, owner }
end

-- handed is standing, counted as Redis itself counts where it lost a group's count.
local function handed(key)
  local last, read = standing(key, group)
  if not last then
    return nil
  end
  local s = info(redis.call('XINFO', 'STREAM', key))
  if last == s['last-generated-id'] then
    read = s['entries-added']
  elseif read < 0 and last == '0-0' then
    read = s['entries-added'] - s.length
  end
  return last, read
end
local last, read = handed(stream)
local retrylast, retryread = handed(KEYS[3])
if not last or not retrylast then
  return redis.error_reply('NOGROUP the stream, its retry stream or their group is missing')
end
if owner ~= consumer or generation ~= known then
  generation = ms(math.max(tonumber(generation) + 1, time))
end
redis.call('HSET', hash, 'lease-owner', consumer, 'lease-generation', generation, 'lease-until', ms(time + ttl))
return { 1, tonumber(generation), last, read, retrylast, retryread }
