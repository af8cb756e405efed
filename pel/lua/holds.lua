-- What the scripts of ordered groups share. A partition of an ordered group is leased to
-- one consumer at a time. Its lease stands in the group's hash: lease-owner, lease-until
-- (server ms) and lease-generation, which only grows. A consumer whose lease ran out still
-- holds it while nobody else took it: the generation tells.

-- holds reports whether the consumer holds the lease, and makes it last anew if so.
local function holds(hash, consumer, generation, ttl)
  local lease = redis.call('HMGET', hash, 'lease-owner', 'lease-generation')
  if lease[1] ~= consumer or lease[2] ~= generation then
    return false
  end
  redis.call('HSET', hash, 'lease-until', ms(now() + tonumber(ttl)))
  return true
end

-- field names an entry in the hash of attempts: by its ID, behind 'retry/' where it is
-- one of the retry stream.
local function field(own, id)
  return own and 'retry/' .. id or id
end

-- info reads a flat reply of XINFO by name.
local function info(flat)
  local byname = {}
  for i = 1, #flat, 2 do
    byname[flat[i]] = flat[i + 1]
  end
  return byname
end

-- less compares stream IDs.
local function less(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then
    return tonumber(am) < tonumber(bm)
  end
  return tonumber(as) < tonumber(bs)
end

-- standing returns the ID up to which a group was handed a stream, and how many entries that
-- is (-1: not known); nothing where the group is missing.
local function standing(stream, group)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, g in ipairs(groups.err and {} or groups) do
    local one = info(g)
    if one.name == group then
      return one['last-delivered-id'], tonumber(one['entries-read']) or -1
    end
  end
end

