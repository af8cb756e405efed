-- Acks entries of a retry stream: it has one group only, so what is acked is deleted in
-- the same step, and the stream empties.
--
-- KEYS  1 the retry stream
-- ARGV  1 group, then IDs
-- Reply the number that was pending
local acked = 0
for i = 2, #ARGV do
  acked = acked + redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return acked
