-- Deletes the oldest letters as far as a retention says so, and counts them. What it says is
-- checked here once more: another call may have deleted some meanwhile.
--
-- KEYS  1 the group's letters  2 the group's hash
-- ARGV  1 most letters that stay, -1 for no limit  2 age in ms above which they go, -1 for
--       none  then IDs, the oldest first
-- Reply the IDs that were deleted
local letters, hash = KEYS[1], KEYS[2]
local most, age = tonumber(ARGV[1]), tonumber(ARGV[2])
local oldest = age >= 0 and now() - age or -1

local before = redis.call('HGET', hash, 'discarded') -- fails before anything is deleted where it is no hash
local deleted = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if tonumber(string.match(id, '^%d+')) < oldest or (most >= 0 and redis.call('XLEN', letters) > most) then
    if redis.call('XDEL', letters, id) == 1 then
      deleted[#deleted + 1] = id
    end
  end
end
if #deleted > 0 then
  redis.call('HSET', hash, 'discarded', ms((tonumber(before) or 0) + #deleted))
end
return deleted
