#!lua
-- Adds letters that were exported, each once: not one that stands here as it was exported,
-- nor one that the set of imported letters remembers.
--
-- KEYS  1 the group's letters  2 the set of digests of what was imported
-- ARGV  1 seconds for which the set is kept  2 '1' to import what the set remembers, too
--       then for each letter: the ID that it was exported with, its digest, number of
--       fields and values, and these
-- Reply for each letter: added, repeated, or an error's text
local letters, imported = KEYS[1], KEYS[2]
local again = ARGV[2] == '1'

local function stands(id, fields)
  local letter = redis.call('XRANGE', letters, id, id)[1]
  if not letter or #letter[2] ~= #fields then
    return false
  end
  for i = 1, #fields do
    if letter[2][i] ~= fields[i] then
      return false
    end
  end
  return true
end

local function import(id, digest, fields)
  local known = redis.call('SISMEMBER', imported, digest) == 1
  if (known and not again) or stands(id, fields) then
    return 'repeated'
  end
  redis.call('XADD', letters, '*', unpack(fields))
  redis.call('SADD', imported, digest)
  return 'added'
end

local replies, i = {}, 3
while i <= #ARGV do
  local n = tonumber(ARGV[i + 2])
  local fields = {}
  for k = 1, n do
    fields[k] = ARGV[i + 2 + k]
  end
  local ok, reply = pcall(import, ARGV[i], ARGV[i + 1], fields)
  if not ok then
    reply = type(reply) == 'table' and reply.err or tostring(reply)
  end
  replies[#replies + 1] = reply
  i = i + 3 + n
end
redis.call('EXPIRE', imported, ARGV[1])
return replies
