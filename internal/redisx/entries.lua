#!lua
-- What the scripts that add new entries share; NewEntriesScript puts this text before theirs.
-- No allow-oom: where memory is full the caller keeps the events.

-- entry reads one entry of ARGV, as Entries appends it: the number of its shape, at a shape's
-- first use the names of its fields behind their count, and the values. So no Lua strings
-- are made of the names for every entry.
-- It returns names and values, how many both are, and where the next argument is. The table
-- is the next entry's too.
local argv, shapes = ARGV, {}
local function entry(i)
  local shape = shapes[argv[i]]
  if not shape then
    local count = tonumber(argv[i + 1])
    shape = { n = 2 * count }
    for k = 1, count do
      shape[2 * k - 1] = argv[i + 1 + k]
    end
    shapes[argv[i]] = shape
    i = i + 1 + count
  end
  for k = 2, shape.n, 2 do
    i = i + 1
    shape[k] = argv[i]
  end
  return shape, shape.n, i + 1
end

