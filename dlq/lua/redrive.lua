-- Gives letters back to the group that they died in: adds each to its retry stream, then
-- deletes the letter, in one step each. In that order, since Lua does not roll back: where
-- the addition fails the letter stays. The first death is noted once, and stays.
--
-- KEYS  1 the group's letters  2 its retry stream
-- ARGV  1 bytes after which no further letter is looked at  2 '1' to keep the attempts
--       3 '1' to put another payload in place, which is  4 its content type, '' for the one
--       that is there  5 the payload  6 who says so  7 the digest of the one that is there
--       then IDs of letters
-- Reply for each letter that was looked at: ok (given back), gone (no such letter), empty
--       (no body is left), or an error's text
local letters, retry = KEYS[1], KEYS[2]
local budget, keep, edit = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3] == '1'
local contenttype, data, editor, original = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local bytes = 0

local function put(event, name, value)
  for i = 1, #event, 2 do
    if event[i] == name then
      event[i + 1] = value
      return
    end
  end
  event[#event + 1] = name
  event[#event + 1] = value
end

local function giveback(id)
  local letter = redis.call('XRANGE', letters, id, id)[1]
  if not letter then
    return 'gone'
  end
  local event, old = split(letter[2])
  if old.packed then
    event = cmsgpack.unpack(old.packed)
  end
  if #event == 0 then
    return 'empty'
  end
  local book = {
    origin = old.origin, first = old.first, deliveries = '0',
    attempts = keep and old.attempts or '0',
    redrives = ms((tonumber(old.redrives) or 0) + 1),
    firstdied = old.firstdied or old.died,
    firstreason = old.firstdied and old.firstreason or old.reason,
    firsterror = old.firstdied and old.firsterror or old.error,
    edited = old.edited, editor = old.editor, original = old.original,
  }
  if edit then
    put(event, 'data', data)
    if contenttype ~= '' then
      put(event, 'datacontenttype', contenttype)
    end
    book.edited, book.editor, book.original = ms(now()), editor, old.original or original
  end
  bytes = bytes + size(event)
  add(retry, event, book)
  redis.call('XDEL', letters, id)
  return 'ok'
end

local replies = {}
for i = 8, #ARGV do
  local ok, reply = pcall(giveback, ARGV[i])
  if not ok then
    reply = type(reply) == 'table' and reply.err or tostring(reply)
  end
  replies[#replies + 1] = reply
  if bytes >= budget then
    break
  end
end
return replies
