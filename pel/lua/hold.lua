-- Settles one delivery of a leased partition, other than by a plain ack. A retry stays
-- pending, and the later events of its key wait behind it; its attempts and due time are
-- noted for the next owner.
--
-- KEYS  1 the stream  2 the group's hash  3 its attempts  4 its letters
-- ARGV  1 group  2 consumer  3 generation  4 '1' where KEYS[1] is the retry stream  5 '1'
--       where the caller repeats after a lost reply  6 outcome (ack, hold, dead)  7 ID
--       8 state to note (hold)  9 delay in ms (hold)  10 what follows them in the note (hold);
--       then the fields of the letter (dead)
-- Reply ok, done (settled before) or lost (the lease is)
local stream, attempts, dead = KEYS[1], KEYS[3], KEYS[4]
local group, consumer, own, repeated = ARGV[1], ARGV[2], ARGV[4] == '1', ARGV[5] == '1'
local outcome, id = ARGV[6], ARGV[7]
if not holds(KEYS[2], consumer, ARGV[3]) then
  return 'lost'
end
local time = now()
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
pending = not pending.err and pending[1]
if outcome == 'hold' then
  if pending then
    redis.call('HSET', attempts, field(own, id), ARGV[8] .. ' ' .. ms(time + ARGV[9]) .. ' ' .. ARGV[10])
  end
  return 'ok'
end
if outcome == 'dead' then
  local fields = {}
  for i = 11, #ARGV do
    fields[i - 10] = ARGV[i]
  end
  local event, book = split(fields)
  if not pending then
    if own or #redis.call('XRANGE', stream, id, id) > 0 then
      return 'done'
    end
    if repeated then
      for _, letter in ipairs(redis.call('XREVRANGE', dead, '+', '-', 'COUNT', 100)) do
        local _, other = split(letter[2])
        if other.origin == book.origin and other.reason ~= 'trimmed' then -- without a body
          return 'done'
        end
      end
    end
  end
  book.died = ms(time)
  add(dead, event, book)
end
if pending then
  redis.call('XACK', stream, group, id)
end
if own then
  redis.call('XDEL', stream, id)
end
redis.call('HDEL', attempts, field(own, id))
return 'ok'
