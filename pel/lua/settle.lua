-- Settles deliveries of one stream, each by itself: adds it where it goes, then removes
-- it from the pending list. In that order, since Lua does not roll back: where the
-- addition fails the entry stays pending.
--
-- KEYS  1 the stream  2 the group's due set  3 its retry stream  4 its letters
-- ARGV  1 group  2 consumer  3 '1' where KEYS[1] is the retry stream, whose entries are
--       deleted when they are settled  4 '1' where the caller repeats after a lost reply
--       then for each delivery: outcome (retry, dead, release), ID, delay in ms,
--       number of fields and values, and these: the entry as it will stand
-- Reply for each delivery: ok (settled now), done (settled before, by this caller or
--       another), lost (pending with another consumer), or an error's text
local stream, due, retry, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, consumer, own, repeated = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4] == '1'
local time = now()

-- standing reports whether an earlier, identical call left its due item or letter.
local function standing(outcome, member, origin)
  if outcome == 'retry' and redis.call('ZSCORE', due, member) then
    return true
  end
  for _, letter in ipairs(redis.call('XREVRANGE', outcome == 'dead' and dead or retry, '+', '-', 'COUNT', 100)) do
    local _, book = split(letter[2])
    if book.origin == origin and book.reason ~= 'trimmed' then -- a sweep's, without a body
      return true
    end
  end
  return false
end

local function settle(outcome, id, delay, fields)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if pending and pending[2] ~= consumer then
    return 'lost'
  end
  local event, book = split(fields)
  local member = outcome == 'retry' and cmsgpack.pack(fields)
  if not pending then
    -- Nobody's any more. If the entry is there, or was deleted by settling it, that was
    -- its end. If it was trimmed, a sweep purged it, and the caller has the last copy.
    if own or #redis.call('XRANGE', stream, id, id) > 0 or (repeated and standing(outcome, member, book.origin)) then
      return 'done'
    end
  end
  if outcome == 'retry' then
    redis.call('ZADD', due, time + delay, member)
  elseif outcome == 'release' then
    add(retry, event, book)
  else
    book.died = ms(time)
    add(dead, event, book)
  end
  redis.call('XACK', stream, group, id)
  if own then
    redis.call('XDEL', stream, id)
  end
  return 'ok'
end

local replies, i = {}, 5
while i <= #ARGV do
  local outcome, id, delay, n = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local fields = {}
  for k = 1, n do
    fields[k] = ARGV[i + 3 + k]
  end
  i = i + 4 + n
  local ok, reply = pcall(settle, outcome, id, delay, fields)
  if not ok then
    reply = type(reply) == 'table' and reply.err or tostring(reply)
  end
  replies[#replies + 1] = reply
end
return replies
