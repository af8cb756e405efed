#!lua
-- Publishes events to one partition, each only if its id was not published within the
-- window. Ids are remembered in two hashes, the current one and the one before, which
-- change places when the current one is as old as the window: an id is known for at least
-- the window, and for at most twice that.
--
-- KEYS  1 the stream  2 the hash that says which is current, and since when  3, 4 the hashes
-- ARGV  1 window in ms  then for each event: id, number of fields and values, and these
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
local anybefore = redis.call('EXISTS', before) == 1

local replies, i, n = {}, 2, 0
while i <= #ARGV do
  local id, count = ARGV[i], tonumber(ARGV[i + 1])
  local got = anybefore and redis.call('HGET', before, id) or redis.call('HGET', known, id)
  n = n + 1
  if got then
    replies[n] = '=' .. got
  else
    got = redis.call('XADD', stream, '*', unpack(ARGV, i + 2, i + 1 + count))
    redis.call('HSET', known, id, got)
    replies[n] = got
  end
  i = i + 2 + count
end
redis.call('PEXPIRE', known, 3 * window)
return replies
