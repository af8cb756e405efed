-- Finds what of a stream may go and what must stay, and trims. One step: what the floor
-- stands on cannot change in between. A call looks at some 500 entries where it must look at
-- entries at all (length, bytes, what is discarded); the caller calls again while more go.
--
-- KEYS  1 the stream
-- ARGV  1 ms of age that may go  2 most entries, or 0  3 most bytes, or 0  4 ms of age that
--       goes whether finished or not, or 0  5 ms after which a group counts as stale
--       6 '1' to trim exactly, not by whole nodes  7 '1' to change nothing (dry run)
--       8 an ID below which to keep (what the archive has so far), or ''
--       then the groups that must be there
-- Reply 1 entries trimmed (in a dry run: 0)  2 the floor, or ''  3 the ID below which
--       entries go, or ''  4 the group that holds it back, or ''  5 why nothing may go:
--       missing (a registered group is not at the stream), nogroup, nostream, or ''
--       6 the entries left  7 '1' where another call would find more  8 the discarded IDs
--       9 for each group that lost some: name, unread, pending
--       10 for each stale group: name, ID of its oldest unfinished entry
local stream = KEYS[1]
local keep, maxlen, maxbytes, hardage, stale = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local exact, dry, upto = ARGV[6] == '1', ARGV[7] == '1', ARGV[8]
local LOOK = 500
local time = now()

local function less(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then
    return tonumber(am) < tonumber(bm)
  end
  return tonumber(as) < tonumber(bs)
end

-- nextid returns the ID behind one; sequence numbers that a double cannot hold stay.
local function nextid(id)
  local head, tail = string.match(id, '^(%d+)-(%d+)$')
  if #tail > 15 then
    return id
  end
  return head .. '-' .. string.format('%.0f', tonumber(tail) + 1)
end

local function idat(ms)
  return string.format('%.0f-0', math.max(0, ms))
end

local function nothing(why, group, left)
  return { 0, '', '', group, why, left, '0', {}, {}, {} }
end

local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then
  if redis.call('EXISTS', stream) == 0 then
    return nothing('nostream', '', 0)
  end
  error(groups)
end
local left = redis.call('XLEN', stream)

-- The floor: the least that a group has not finished. What is pending and no longer in the
-- stream holds nothing; a sweep makes a letter of it.
local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local floor, holder, present, infos, old = nil, '', {}, {}, {}
for i, g in ipairs(groups) do
  local info = {}
  for k = 1, #g, 2 do
    info[g[k]] = g[k + 1]
  end
  infos[i] = info
  present[info.name] = true
  local pending = info.pending > 0 and oldest and redis.call('XPENDING', stream, info.name, oldest[1], '+', 1)[1]
  local first
  if pending then
    first = pending[1]
    if less(first, idat(time - stale)) then
      old[#old + 1], old[#old + 2] = info.name, first
    end
  else
    first = nextid(info['last-delivered-id'])
    local unread = redis.call('XRANGE', stream, first, '+', 'COUNT', 1)[1]
    if unread and less(unread[1], idat(time - stale)) then
      old[#old + 1], old[#old + 2] = info.name, unread[1]
    end
  end
  if not floor or less(first, floor) then
    floor, holder = first, info.name
  end
end
if not floor then
  return nothing('nogroup', '', left)
end
local missing
for i = 9, #ARGV do
  if not present[ARGV[i]] then
    missing = ARGV[i]
    infos[#infos + 1] = { name = missing, pending = 0, ['last-delivered-id'] = '0-0' } -- it has read nothing
  end
end

-- What may go: what is old enough, or beyond the length or size that is kept.
local may, more = idat(time - keep), false
local most = maxlen > 0 and maxlen or left
if maxbytes > 0 and left > 0 then
  local bytes = redis.call('MEMORY', 'USAGE', stream)
  if bytes > maxbytes then
    most = math.min(most, math.floor(left * maxbytes / bytes))
  end
end
if left > most then
  local count = math.min(left - most, LOOK)
  local page = redis.call('XRANGE', stream, '-', '+', 'COUNT', count + 1)
  local edge = page[count + 1] and page[count + 1][1] or nextid(page[#page][1])
  more = left - most > LOOK
  if less(may, edge) then
    may = edge
  end
end

local cut, why = may, ''
if missing then
  cut, holder, why = '0-0', missing, 'missing'
elseif less(floor, cut) then
  cut = floor
else
  holder = ''
end

-- What goes whether finished or not.
local discarded, losses = {}, {}
local hard = hardage > 0 and idat(time - hardage) or nil
if hard and less(cut, hard) then
  exact = true
  local page = redis.call('XRANGE', stream, cut, hard, 'COUNT', LOOK + 1)
  cut, holder, why = hard, '', ''
  more = true -- what held the rest may be gone with it
  if #page > LOOK then
    cut = page[LOOK + 1][1]
  end
  local lost = {}
  for _, info in ipairs(infos) do
    local pending = {}
    if info.pending > 0 then
      for _, p in ipairs(redis.call('XPENDING', stream, info.name, '-', cut, 10 * LOOK)) do
        pending[p[1]] = true
      end
    end
    local unread, held = 0, 0
    for _, entry in ipairs(page) do
      local id = entry[1]
      if less(id, cut) then
        if less(info['last-delivered-id'], id) then
          unread = unread + 1
          lost[id] = true
        elseif pending[id] then
          held = held + 1
          lost[id] = true
        end
      end
    end
    if unread + held > 0 then
      local n = #losses
      losses[n + 1], losses[n + 2], losses[n + 3] = info.name, unread, held
    end
  end
  for _, entry in ipairs(page) do
    if lost[entry[1]] then
      discarded[#discarded + 1] = entry[1]
    end
  end
end
if why == 'missing' then
  return nothing(why, holder, left)
end

if upto ~= '' and less(upto, cut) then
  cut = upto
end
local trimmed = 0
if not dry then
  trimmed = redis.call('XTRIM', stream, 'MINID', exact and '=' or '~', cut)
end
return { trimmed, floor, cut, holder, why, left - trimmed, more and '1' or '0', discarded, losses, old }
