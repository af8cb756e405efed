-- Pauses a group whose dead letters are full, or ends that: a pause that a person ordered
-- stays as it is.
--
-- KEYS  1 the group's hash
-- ARGV  1 '1' where they are full
-- Reply 1 where something changed, else 0
local paused = redis.call('HGET', KEYS[1], 'paused')
if ARGV[1] == '1' and not paused then
  return redis.call('HSET', KEYS[1], 'paused', 'letters')
elseif ARGV[1] == '0' and paused == 'letters' then
  return redis.call('HDEL', KEYS[1], 'paused')
end
return 0
