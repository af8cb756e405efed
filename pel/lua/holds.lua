-- What the scripts of ordered groups share. A partition of an ordered group is leased to
-- one consumer at a time. Its lease stands in the group's hash: lease-owner, lease-until
-- (server ms) and lease-generation, which only grows. A consumer whose lease ran out still
-- holds it while nobody else took it: the generation tells.

-- holds reports whether the consumer holds the lease. It does not make it last anew: reading
-- is guarded by a watch of this hash, which every write to it disturbs.
local function holds(hash, consumer, generation)
  local lease = redis.call('HMGET', hash, 'lease-owner', 'lease-generation')
  return lease[1] == consumer and lease[2] == generation
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

