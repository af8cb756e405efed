-- Moves the retries that are due to the group's retry stream.
--
-- KEYS  1 the group's due set  2 its retry stream  3 its letters
-- ARGV  1 group  2 most retries to move  3 most bytes to move
-- Reply 1 number moved  2 ms until the next one is due (0: some are due still; -1: none)
local due, retry, dead = KEYS[1], KEYS[2], KEYS[3]
local limit, budget = tonumber(ARGV[2]), tonumber(ARGV[3])
local time = now()
local moved, bytes = 0, 0
for _, member in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', time, 'LIMIT', 0, limit)) do
  if bytes >= budget then
    break
  end
  local ok, fields = pcall(cmsgpack.unpack, member)
  if ok and type(fields) == 'table' and #fields > 0 and #fields % 2 == 0 then
    local event, book = split(fields)
    add(retry, event, book)
  else -- not written by a settle script: kept for a person, in nobody's way
    add(dead, { 'data', member }, { group = ARGV[1], reason = 'undecodable', error = 'no retry in the due set', died = ms(time) })
  end
  redis.call('ZREM', due, member)
  moved, bytes = moved + 1, bytes + #member
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if not first[1] then
  return { moved, -1 }
end
return { moved, math.max(0, tonumber(first[2]) - time) }
