-- Takes delivery of entries whose bodies the owner of a partition has read without the
-- group, and acks what it has finished. XREADGROUP could not be made to depend on the lease
-- but inside of a script, where it cannot block and halves the rate.
--
-- KEYS  1 the stream  2 the group's hash
-- ARGV  1 group  2 consumer  3 generation  4 ms that the lease lasts  5 '1' where KEYS[1] is
--       the retry stream, whose acked entries are deleted  6 how many entries the group was
--       handed before (-1: not known)  7 up to which ID  8 number of IDs to ack, and these;
--       then the IDs to take, in order
-- Reply how many entries the group was handed by now; -2 where the lease is lost; -3 where
--       the group stands before that ID: it was made anew, or sought back
local stream, group, consumer, own = KEYS[1], ARGV[1], ARGV[2], ARGV[5] == '1'
local read, acks = tonumber(ARGV[6]), tonumber(ARGV[8])
if not holds(KEYS[2], consumer, ARGV[3], ARGV[4]) then
  return -2
end
if acks > 0 then
  redis.call('XACK', stream, group, unpack(ARGV, 9, 8 + acks))
  if own then
    redis.call('XDEL', stream, unpack(ARGV, 9, 8 + acks))
  end
end
local n = #ARGV - 8 - acks
if n == 0 then
  return read
end
local stands = standing(stream, group)
if stands and less(stands, ARGV[7]) then
  return -3
end
local last = ARGV[#ARGV]
local claim = { stream, group, consumer, 0, unpack(ARGV, 9 + acks) }
local k = #claim
claim[k + 1], claim[k + 2], claim[k + 3], claim[k + 4] = 'FORCE', 'JUSTID', 'RETRYCOUNT', 1
redis.call('XCLAIM', unpack(claim))
-- XCLAIM with LASTID would leave the count behind on which the lag stands.
local s = info(redis.call('XINFO', 'STREAM', stream))
if last == s['last-generated-id'] then
  read = s['entries-added']
elseif read >= 0 then
  read = read + n
end
redis.call('XGROUP', 'SETID', stream, group, last, 'ENTRIESREAD', read)
return read
