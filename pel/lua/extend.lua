-- Heartbeat: tells that the consumer lives, and resets the idle time of what it has in
-- hand, without counting a delivery. XCLAIM purges a trimmed entry from the pending list
-- silently, so the script looks first and leaves those alone.
--
-- KEYS  1 the stream  2 the group's members
-- ARGV  1 group  2 consumer, then IDs
-- Reply for each ID: 1 extended, 0 gone from the stream, -1 no longer pending with this
--       consumer
local stream, group, consumer = KEYS[1], ARGV[1], ARGV[2]
redis.call('ZADD', KEYS[2], now(), consumer)
local replies = {}
if #ARGV == 2 then
  return replies
end

-- less compares stream IDs.
local function less(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then
    return tonumber(am) < tonumber(bm)
  end
  return tonumber(as) < tonumber(bs)
end

-- Whether an entry is there is mostly known without reading its body: it lies behind
-- the first entry and behind the highest ID that XDEL ever removed.
local first, deleted = '0-0', '0-0'
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then
  first = nil -- no stream: everything is gone
else
  for i = 1, #info, 2 do
    if info[i] == 'recorded-first-entry-id' then first = info[i + 1] end
    if info[i] == 'max-deleted-entry-id' then deleted = info[i + 1] end
    if info[i] == 'length' and info[i + 1] == 0 then first = nil end
    if first == nil then break end
  end
end

for i = 3, #ARGV do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  local owner = not pending.err and pending[1] and pending[1][2]
  local reply = -1
  if pending.err then
    reply = 0 -- no group: nobody else has it
  elseif owner == consumer then
    if first == nil or less(id, first) or (not less(deleted, id) and #redis.call('XRANGE', stream, id, id) == 0) then
      reply = 0
    else
      redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
      reply = 1
    end
  elseif not owner and (first == nil or less(id, first)) then
    reply = 0 -- trimmed and purged: the caller has the last copy
  end
  replies[#replies + 1] = reply
end
return replies
