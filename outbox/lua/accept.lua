#!lua
-- Takes a loss as it is: the stream's position moves on to what the relay knows, without the rows in between.
-- A stream that is gone is made, empty, since a position without its stream says nothing.
--
-- KEYS  1 the stream  2 its relay hash
-- ARGV  1 system  2 and 3 batch and row that the stream held when the loss was found
--       4 and 5 batch and row to move to
-- Reply 1 moved, 0 the stream holds something else by now
local stream, relay = KEYS[1], KEYS[2]
local at = redis.call('HMGET', relay, 'batch', 'row')
local there = redis.call('EXISTS', stream) == 1
if not there then
  at = { false, false }
end
if (at[1] or '0') ~= ARGV[2] or (at[2] or '0') ~= ARGV[3] then
  return 0
end
if not there then
  redis.call('XGROUP', 'CREATE', stream, 'sk-relay', '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', stream, 'sk-relay')
end
redis.call('HSET', relay, 'system', ARGV[1], 'batch', ARGV[4], 'row', ARGV[5], 'tag', '')
return 1
