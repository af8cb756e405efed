#!lua flags=no-writes,allow-oom
-- What a stream says of itself at one moment, seen from a projection's checkpoint. One
-- step: trimming between two looks would pass for a stream that was rewound.
--
-- KEYS  1 the stream
-- ARGV  1 the projection's group  2 the ID of the checkpoint
-- Reply 1 length  2 entries ever added  3 last generated ID  4 highest deleted ID
--       5 ID of the first entry, or ''  6 its sequence, or ''
--       7 1 where the checkpoint's entry is there  8 its event id, or ''
--       9 the group's position, or '' where the group is missing
local key, group, id = KEYS[1], ARGV[1], ARGV[2]
if redis.call('EXISTS', key) == 0 then
  return { 0, 0, '0-0', '0-0', '', '', 0, '', '' }
end

local function named(flat)
  local map = {}
  for i = 1, #flat, 2 do
    map[flat[i]] = flat[i + 1]
  end
  return map
end

-- field is the first value of a field: a foreign entry may repeat it.
local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then
      return fields[i + 1]
    end
  end
  return ''
end

local info = named(redis.call('XINFO', 'STREAM', key))
local first, sequence = '', ''
if info['first-entry'] then
  first = info['first-entry'][1]
  sequence = field(info['first-entry'][2], 'sequence')
end

local there, event = 0, ''
local anchor = redis.call('XRANGE', key, id, id)[1]
if anchor then
  there, event = 1, field(anchor[2], 'id')
end

local position = ''
for _, g in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local of = named(g)
  if of['name'] == group then
    position = of['last-delivered-id']
  end
end
return { info['length'], info['entries-added'], info['last-generated-id'], info['max-deleted-entry-id'], first, sequence, there, event, position }
