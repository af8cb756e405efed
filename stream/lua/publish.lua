-- Publishes events to one partition, each only if its id was not published within the
-- window. Ids are remembered in two hashes, the current one and the one before, which
-- change places when the current one is as old as the window: an id is known for at least
-- the window, and for at most twice that.
--
-- KEYS  1 the stream  2 the hash that says which is current, and since when  3, 4 the hashes
-- ARGV  1 window in ms  2 how many events  their ids, no two the same  and their entries
-- Reply for each event: its ID; one that was published before has the ID that it got then,
--       behind a '='
local stream, meta = KEYS[1], KEYS[2]
local window = tonumber(ARGV[1])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local state = redis.call('HMGET', meta, 'current', 'since')
local current, since = tonumber(state[1]) or 0, tonumber(state[2])
if not since or now - since >= window then
  current = 1 - current
  redis.call('UNLINK', KEYS[3 + current])
  if since and now - since >= 2 * window then
    redis.call('UNLINK', KEYS[4 - current]) -- nothing was published for so long that the other is old too
  end
  redis.call('HSET', meta, 'current', current, 'since', string.format('%.0f', now))
  redis.call('PEXPIRE', meta, 3 * window)
end
local known, before = KEYS[3 + current], KEYS[4 - current]

-- One look and one write for all: a call from Lua costs more than what it does here.
local last = 2 + ARGV[2]
local found = redis.call('HMGET', known, unpack(ARGV, 3, last))
local older = redis.call('EXISTS', before) == 1 and redis.call('HMGET', before, unpack(ARGV, 3, last)) or {}

local replies, fresh, failed = {}, {}, nil
local next, m = last + 1, 0
for n = 1, last - 2 do
  local fields, count
  fields, count, next = entry(next)
  local got = older[n] or found[n]
  if got then
    replies[n] = '=' .. got
  else
    got = redis.pcall('XADD', stream, '*', unpack(fields, 1, count))
    if got.err then
      failed = got -- what was added is remembered all the same
      break
    end
    replies[n] = got
    fresh[m + 1], fresh[m + 2] = ARGV[n + 2], got
    m = m + 2
  end
end
if m > 0 then
  redis.call('HSET', known, unpack(fresh))
end
redis.call('PEXPIRE', known, 3 * window)
return failed or replies
