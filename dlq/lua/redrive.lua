-- Gives letters back to the group that they died in: to its retry stream, with their
-- counts reset, and deletes them, in one step each.
--
-- KEYS  1 the group's letters  2 its retry stream
-- ARGV  IDs of letters
-- Reply for each: 1 given back, 0 no such letter, -1 it has no body (trimmed)
local replies = {}
for i = 1, #ARGV do
  local id = ARGV[i]
  local letter = redis.call('XRANGE', KEYS[1], id, id)[1]
  local reply = 0
  if letter then
    local event, book = split(letter[2])
    if book.packed then
      event = cmsgpack.unpack(book.packed)
    end
    if #event == 0 then
      reply = -1
    else
      add(KEYS[2], event, {
        origin = book.origin, first = book.first, attempts = '0', deliveries = '0',
        redrives = tostring((tonumber(book.redrives) or 0) + 1),
      })
      redis.call('XDEL', KEYS[1], id)
      reply = 1
    end
  end
  replies[i] = reply
end
return replies
