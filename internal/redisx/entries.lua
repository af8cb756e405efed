#!lua
-- What the scripts that add new entries share; NewEntriesScript puts this text before theirs.
-- No allow-oom: where memory is full the caller keeps the events.

-- entry reads one entry of ARGV, as Entries appends it: before the first of some of one shape, which have the same
-- names, the number of the shape and how many they are; where the shape is new, how many names it has, these, for each
-- name a 1 if all its entries have the same value, else a 0, and those values; then its other values. So no Lua strings
-- are made for every entry of what all have in common.
-- It returns names and values, how many both are, and where the next argument is. The table is the next entry's too.
local argv, shapes, shape, left = ARGV, {}, nil, 0
local function entry(i)
  local args = argv
  if left == 0 then
    local number = args[i]
    shape, left, i = shapes[number], tonumber(args[i + 1]), i + 2
    if not shape then
      local count = tonumber(args[i])
      local common, fields, others = args[i + count + 1], {}, {}
      local value = i + count + 2
      for k = 1, count do
        fields[2 * k - 1] = args[i + k]
        if string.sub(common, k, k) == '1' then
          fields[2 * k] = args[value]
          value = value + 1
        else
          others[#others + 1] = 2 * k
        end
      end
      shape = { fields = fields, n = 2 * count, others = others }
      shapes[number], i = shape, value
    end
  end
  left = left - 1
  local fields, others = shape.fields, shape.others
  for k = 1, #others do
    fields[others[k]] = args[i]
    i = i + 1
  end
  return fields, shape.n, i
end
