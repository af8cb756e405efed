#!lua
-- Says that a stream's rows are those of this database.
--
-- KEYS  1 the stream's relay hash
-- ARGV  1 system
-- Reply the system that it named before; '' if there is no hash
local was = redis.call('HGET', KEYS[1], 'system')
if was and was ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'system', ARGV[1])
end
return was or ''
