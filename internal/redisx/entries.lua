#!lua
-- What the scripts that add new entries share; NewEntriesScript puts this text before theirs.
-- No allow-oom: where memory is full the caller keeps the events.

-- entry reads one entry of ARGV, as Entries appends it: before the first of some that have the same
-- fields the number of their shape, how many they are and, where the shape is new, how many
-- names it has, and these; then its values. So no Lua strings are made of the names for every entry.
-- It returns names and values, how many both are, and where the next argument is. The table
-- is the next entry's too.
local argv, shapes, shape, left = ARGV, {}, nil, 0
local function entry(i)
  local args = argv
  if left == 0 then
    local number = args[i]
    shape, left, i = shapes[number], tonumber(args[i + 1]), i + 2
    if not shape then
      local count = tonumber(args[i])
      shape = { n = 2 * count }
      for k = 1, count do
        shape[2 * k - 1] = args[i + k]
      end
      shapes[number] = shape
      i = i + 1 + count
    end
  end
  left = left - 1
  local fields, n = shape, shape.n
  for k = 2, n, 2 do
    fields[k] = args[i]
    i = i + 1
  end
  return fields, n, i
end
