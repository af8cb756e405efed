-- Sets how often entries of a leased partition count as delivered. XCLAIM purges a trimmed
-- entry from the pending list silently, so the script looks first and leaves those alone.
--
-- KEYS  1 the stream  2 the group's hash
-- ARGV  1 group  2 consumer  3 generation  4 deliveries, then IDs
-- Reply 1, or 0 where the lease is lost
local stream, group, consumer = KEYS[1], ARGV[1], ARGV[2]
if not holds(KEYS[2], consumer, ARGV[3]) then
  return 0
end
for i = 5, #ARGV do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  if not pending.err and pending[1] and #redis.call('XRANGE', stream, id, id) > 0 then
    redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID', 'RETRYCOUNT', ARGV[4])
  end
end
return 1
