#!lua flags=allow-oom
-- Moves a projection's group to its checkpoint, and makes the group where it is missing.
-- Only in a stream that has the entry at the checkpoint, or whose group stands where it was
-- seen to stand: so that the group's position proves that this stream once had that entry,
-- also when the move comes to a server that was promoted meanwhile, without the entry.
--
-- KEYS  1 the stream
-- ARGV  1 group  2 ID of the checkpoint  3 its event's id  4 entries read up to there, or -1
--       5 where the group was seen in this stream, or ''
-- Reply 1, or 0 where nothing was moved
local key, group, id, event, read, seen = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- there reports whether the stream has the entry, with the same event in it.
local function there()
  local entry = redis.call('XRANGE', key, id, id)[1]
  if not entry then
    return false
  end
  local name = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'id' then
      name = entry[2][i + 1]
      break
    end
  end
  return name == event or 'sha1:' .. redis.sha1hex(name) == event
end

local function position()
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  if groups.err then
    return ''
  end
  for _, g in ipairs(groups) do
    local of = {}
    for i = 1, #g, 2 do
      of[g[i]] = g[i + 1]
    end
    if of['name'] == group then
      return of['last-delivered-id']
    end
  end
  return ''
end

if id ~= '0-0' and not there() and (seen == '' or position() ~= seen) then
  return 0
end
local moved = redis.pcall('XGROUP', 'SETID', key, group, id, 'ENTRIESREAD', read)
if moved.err then -- no group, or not even a stream; making it says what else is wrong
  redis.call('XGROUP', 'CREATE', key, group, id, 'MKSTREAM', 'ENTRIESREAD', read)
end
return 1
