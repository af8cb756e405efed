#!lua
-- Makes the group on its stream and on its retry stream where it is missing. A group
-- that vanished comes back from its stored checkpoint, never from '$', which would skip
-- what was said meanwhile. A checkpoint above everything that the stream ever held is
-- one of another stream: then all of it is new.
--
-- KEYS  1 the stream  2 the group's hash  3 its retry stream
-- ARGV  1 group  2 the start of a new group: an ID or '$'
-- Reply 1 where the group was made on the stream, else 0; and the ID that it starts from
local stream, hash, retry, group = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

local function create(key, start)
  local reply = redis.pcall('XGROUP', 'CREATE', key, group, start, 'MKSTREAM')
  if reply.err then
    if string.sub(reply.err, 1, 9) == 'BUSYGROUP' then
      return 0
    end
    error(reply)
  end
  return 1
end

local start = ARGV[2]
local checkpoint = redis.call('HGET', hash, 'checkpoint')
if checkpoint then
  start = checkpoint
  local info = redis.pcall('XINFO', 'STREAM', stream)
  local last = '0-0'
  if not info.err then
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
  end
  local cm, cs = string.match(checkpoint, '^(%d+)-(%d+)$')
  local lm, ls = string.match(last, '^(%d+)-(%d+)$')
  if tonumber(cm) > tonumber(lm) or (cm == lm and tonumber(cs) > tonumber(ls)) then
    start = '0'
  end
end
local made = create(stream, start)
create(retry, '0')
return { made, start }
