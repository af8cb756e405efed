-- Deletes what a group has at a stream.
--
-- KEYS  1 the stream  2 the group's members  3 its hash  4 its retry stream  5 its due set
--       6 its attempts  7 its letters
-- ARGV  1 group  2 ms of silence after which a consumer does not live  3 '1' to delete
--       whoever lives  4 '1' to delete the letters too
-- Reply the number of living consumers, where that kept it from deleting; else 0
local living = redis.call('ZCOUNT', KEYS[2], now() - tonumber(ARGV[2]), '+inf')
if living > 0 and ARGV[3] ~= '1' then
  return living
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
end
redis.call('UNLINK', unpack(KEYS, 2, ARGV[4] == '1' and 7 or 6))
return 0
