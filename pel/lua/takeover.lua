-- One bounded step of taking over what an earlier owner of a partition left pending, in the
-- order of the stream. It counts no delivery: what was never begun (count 0) counts one now,
-- the rest counts when its handler runs. What is gone from the stream becomes a letter. The
-- step that reaches the end deletes the names of consumers that have nothing pending: only
-- the owner needs one.
--
-- KEYS  1 the stream  2 the group's hash  3 its letters  4 its attempts
-- ARGV  1 group  2 consumer  3 generation  4 '1' where KEYS[1] is the retry stream  5 ID to
--       start from  6 most entries  7 most bytes
-- Reply 1 the ID to go on from, '' at the end, or '-' where the lease is lost
--       2 for each trimmed entry: ID, consumer, deliveries
--       3 for each entry: deliveries, ms until it is due, its record in the attempts or '',
--       ID and fields
local stream, hash, dead, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, consumer, own = ARGV[1], ARGV[2], ARGV[4] == '1'
local limit, budget = tonumber(ARGV[6]), tonumber(ARGV[7])
if not holds(hash, consumer, ARGV[3]) then
  return { '-', {}, {} }
end
local time = now()
local trimmed, entries, bytes, nextid = {}, {}, 0, ''
local page = redis.call('XPENDING', stream, group, ARGV[5], '+', limit)
for _, p in ipairs(page) do
  local id, deliveries = p[1], p[4]
  if bytes >= budget then
    nextid = id
    break
  end
  local record = redis.call('HGET', attempts, field(own, id))
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID', 'RETRYCOUNT', math.max(deliveries, 1))
    local due = record and tonumber(string.match(record, '^%S+ (%d+)')) or 0
    entries[#entries + 1] = { deliveries, math.max(0, due - time), record or '', entry }
    bytes = bytes + size(entry[2])
  else
    add(dead, {}, {
      origin = stream .. '/' .. id, group = group, consumer = p[2], deliveries = tostring(deliveries),
      reason = 'trimmed', error = 'the entry was trimmed while it was pending', died = ms(time),
    })
    redis.call('XACK', stream, group, id)
    redis.call('HDEL', attempts, field(own, id))
    local n = #trimmed
    trimmed[n + 1], trimmed[n + 2], trimmed[n + 3] = id, p[2], deliveries
  end
end
if nextid == '' and #page == limit then
  nextid = '(' .. page[#page][1]
end
if nextid == '' then
  for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local one = info(c)
    if one.name ~= consumer and one.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, one.name)
    end
  end
end
return { nextid, trimmed, entries }
