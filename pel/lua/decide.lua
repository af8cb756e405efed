-- Writes a person's decision about a parked entry into its note.
--
-- KEYS  1 the group's attempts
-- ARGV  1 field  2 decision
-- Reply 1, or 0 where the entry is not parked
local note = redis.call('HGET', KEYS[1], ARGV[1])
local reason, rest = string.match(note or '', '^parked(%S*)( .*)$')
if not reason then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. reason .. rest)
return 1
