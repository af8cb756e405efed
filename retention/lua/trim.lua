-- Finds the floor of a stream, the ID below which every group has finished, and trims
-- what is older than the policy asks to keep and lies below the floor. One step: what
-- the floor stands on cannot change in between.
--
-- KEYS  1 the stream
-- ARGV  1 ms of age that may go (entries older than that)  2 '1' to trim exactly, not by
--       whole nodes  3 '1' to change nothing (dry run)  then the groups that must be there
-- Reply 1 entries trimmed (in a dry run: 0)  2 the floor, or ''  3 the ID below which
--       entries go, or ''  4 what holds it back: a group's name, or '' for the age
--       5 why nothing may go: missing (a registered group is not at the stream), nogroup,
--       nostream, or ''  6 the entries left
local stream, age, exact, dry = KEYS[1], tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3] == '1'

local function less(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then
    return tonumber(am) < tonumber(bm)
  end
  return tonumber(as) < tonumber(bs)
end

local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then
  if redis.call('EXISTS', stream) == 0 then
    return { 0, '', '', '', 'nostream', 0 }
  end
  error(groups)
end
local floor, holder, present = nil, '', {}
for _, g in ipairs(groups) do
  local info = {}
  for i = 1, #g, 2 do
    info[g[i]] = g[i + 1]
  end
  present[info.name] = true
  local id
  if info.pending > 0 then
    id = redis.call('XPENDING', stream, info.name)[2] -- this one is not finished
  else
    -- Everything up to here is finished: the first unfinished ID is the next one.
    local head, tail = string.match(info['last-delivered-id'], '^(%d+)-(%d+)$')
    if #tail < 15 then
      id = head .. '-' .. string.format('%.0f', tonumber(tail) + 1)
    else
      id = info['last-delivered-id']
    end
  end
  if not floor or less(id, floor) then
    floor, holder = id, info.name
  end
end
local left = redis.call('XLEN', stream)
if not floor then
  return { 0, '', '', '', 'nogroup', left }
end
for i = 4, #ARGV do
  if not present[ARGV[i]] then
    return { 0, '', '', ARGV[i], 'missing', left }
  end
end
local cut = string.format('%.0f-0', math.max(0, now() - age))
if less(floor, cut) then
  cut = floor
else
  holder = ''
end
local trimmed = 0
if not dry then
  if exact then
    trimmed = redis.call('XTRIM', stream, 'MINID', '=', cut)
  else
    trimmed = redis.call('XTRIM', stream, 'MINID', '~', cut)
  end
end
return { trimmed, floor, cut, holder, '', left - trimmed }
