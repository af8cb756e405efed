-- Acks what the owner of a partition has handled.
--
-- KEYS  1 the stream  2 the group's hash
-- ARGV  1 group  2 consumer  3 generation  4 '1' where KEYS[1] is the retry stream, whose
--       acked entries are deleted, then IDs
-- Reply 1, or 0 where the lease is lost
if not holds(KEYS[2], ARGV[2], ARGV[3]) then
  return 0
end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 5))
if ARGV[4] == '1' then
  redis.call('XDEL', KEYS[1], unpack(ARGV, 5))
end
return 1
