-- Stores the ID up to which the group has finished everything, so that a group that
-- vanishes comes back from there. And sets right how many entries the group has read: a
-- restart from the append-only file, and a promoted replica, know less than was read, and
-- show a lag for ever after. Where the group has all that the stream ever held the number is
-- known; a user who may not set it keeps the wrong lag, and loses nothing else.
--
-- KEYS  1 the stream  2 the group's hash
-- ARGV  1 group
-- Reply the ID, or '' where the group is missing
local last, lag
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then
  return ''
end
for _, g in ipairs(groups) do
  local info = {}
  for i = 1, #g, 2 do
    info[g[i]] = g[i + 1]
  end
  if info.name == ARGV[1] then
    last, lag = info['last-delivered-id'], info.lag
  end
end
if not last then
  return ''
end
if lag and lag > 0 then
  local reply, info = redis.pcall('XINFO', 'STREAM', KEYS[1]), {}
  for i = 1, #reply, 2 do -- nothing where it is an error
    info[reply[i]] = reply[i + 1]
  end
  if info['last-generated-id'] == last then
    redis.pcall('XGROUP', 'SETID', KEYS[1], ARGV[1], last, 'ENTRIESREAD', info['entries-added'])
  end
end
local first = redis.call('XPENDING', KEYS[1], ARGV[1])[2]
if first then
  local head, tail = string.match(first, '^(%d+)-(%d+)$')
  if tail ~= '0' then
    last = head .. '-' .. string.format('%.0f', tonumber(tail) - 1)
  elseif head == '0' then
    last = '0-0'
  else
    last = string.format('%.0f', tonumber(head) - 1) .. '-18446744073709551615'
  end
end
if redis.call('HGET', KEYS[2], 'checkpoint') ~= last then
  redis.call('HSET', KEYS[2], 'checkpoint', last)
end
return last
