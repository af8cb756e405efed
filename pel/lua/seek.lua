-- Moves a group's position. The checkpoint moves along, or a group that vanishes later would
-- come back from the old one; and nobody holds the lease, so that an owner notices.
--
-- KEYS  1 the stream  2 the group's hash
-- ARGV  1 group  2 an ID, '0' or '$'
-- Reply the ID
local s = redis.call('XINFO', 'STREAM', KEYS[1])
local byname = {}
for i = 1, #s, 2 do
  byname[s[i]] = s[i + 1]
end
local to, read = ARGV[2], -1
if to == '$' then
  to = byname['last-generated-id']
end
if to == byname['last-generated-id'] then
  read = byname['entries-added']
elseif to == '0' or to == '0-0' then
  read = byname['entries-added'] - byname['length']
end
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], to, 'ENTRIESREAD', read)
if not string.find(to, '-') then
  to = to .. '-0'
end
redis.call('HSET', KEYS[2], 'checkpoint', to)
redis.call('HDEL', KEYS[2], 'lease-owner', 'lease-until')
return to
