-- One bounded step of a sweep through a group's pending list: takes over what has been
-- idle for too long. An entry goes to the group's retry stream, or to the letters where
-- it was handed over too often or is gone from the stream; in the same step it leaves
-- the pending list, last.
--
-- It is what XAUTOCLAIM does, cursor, idle time and limit, without what makes XAUTOCLAIM
-- unfit: that purges trimmed entries of live consumers too, without a word (before it
-- looks at the idle time), and forgets whose the entry was and how often it was delivered.
--
-- In an ordered group only what is gone from the stream is taken, and only where nobody
-- leases the partition: the rest is the next owner's.
--
-- KEYS  1 the stream  2 the group's retry stream  3 its letters  4 its hash  5 its attempts
-- ARGV  1 group  2 idle time in ms  3 most deliveries  4 ID to start from  5 most entries to
--       look at  6 most entries to move  7 most bytes to move  8 '1' where KEYS[1] is the
--       retry stream  9 '1' where the group is ordered
-- Reply 1 the ID to go on from, or '' at the end  2 number of entries looked at
--       then for each entry that was taken: outcome (moved, deliveries, trimmed), ID,
--       consumer, deliveries
local stream, retry, dead = KEYS[1], KEYS[2], KEYS[3]
local group, idle, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local examine, limit, budget = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local own, ordered = ARGV[8] == '1', ARGV[9] == '1'
local time = ms(now())
local bytes = 0
if ordered and (tonumber(redis.call('HGET', KEYS[4], 'lease-until')) or 0) > now() then
  return { '', 0 }
end

local page = redis.call('XPENDING', stream, group, ARGV[4], '+', examine)

-- body returns the fields of page[i], or nothing where it is gone. It fetches some ahead: what is
-- pending mostly stands together, and a call for each costs as much as all the rest.
local AHEAD, bodies = 8, {}
local function body(i)
  local id = page[i][1]
  if not bodies[id] then
    bodies = {}
    local last = page[math.min(i + AHEAD - 1, #page)][1]
    for _, entry in ipairs(redis.call('XRANGE', stream, id, last, 'COUNT', AHEAD)) do
      bodies[entry[1]] = entry[2]
    end
  end
  return bodies[id]
end

-- take puts page[i] where it belongs, and answers where that is; nothing where it stays.
local function take(i)
  local id, consumer, deliveries = page[i][1], page[i][2], page[i][4]
  local fields = body(i)
  if not fields then
    add(dead, {}, {
      origin = stream .. '/' .. id, group = group, consumer = consumer, deliveries = tostring(deliveries),
      reason = 'trimmed', error = 'the entry was trimmed while it was pending', died = time,
    })
    return 'trimmed', deliveries
  end
  if ordered then
    return
  end
  local event, book = split(fields)
  if not own then
    book = {} -- bookkeeping in the topic's own stream is not ours
  end
  bytes = bytes + size(event)
  deliveries = deliveries + (tonumber(book.deliveries) or 0)
  book.deliveries = tostring(deliveries)
  book.origin = book.origin or (stream .. '/' .. id)
  if deliveries < most then
    add(retry, event, book)
    return 'moved', deliveries
  end
  book.group, book.consumer, book.reason, book.died = group, consumer, 'deliveries', time
  book.error = 'handed over ' .. deliveries .. ' times, and every consumer went silent'
  add(dead, event, book)
  return 'deliveries', deliveries
end

-- What was put elsewhere leaves the list, also where a later one cannot be put there.
local reply, ids, failed = { '', 0 }, {}, nil
local looked, nextid = 0, ''
for i, p in ipairs(page) do
  if #ids >= limit or bytes >= budget then
    nextid = p[1]
    break
  end
  looked = looked + 1
  if p[3] >= idle then
    local ok, outcome, deliveries = pcall(take, i)
    if not ok then
      failed = outcome
      break
    end
    if outcome then
      ids[#ids + 1] = p[1]
      local n = #reply
      reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = outcome, p[1], p[2], deliveries
    end
  end
end
if #ids > 0 then
  redis.call('XACK', stream, group, unpack(ids))
  if own then
    redis.call('XDEL', stream, unpack(ids))
  end
end
if ordered then
  for _, id in ipairs(ids) do
    redis.call('HDEL', KEYS[5], own and 'retry/' .. id or id)
  end
end
if failed then
  error(failed)
end
if nextid == '' and #page == examine then
  nextid = '(' .. page[#page][1]
end
reply[1], reply[2] = nextid, looked
return reply
