#!lua flags=allow-oom
-- What the settling scripts share. Redis has no include: NewScript puts this text
-- before theirs. allow-oom: they only move entries within Redis, or free them, and
-- must work when memory is full, or a full Redis could never be emptied.

-- now is the server's time in milliseconds: due times and ages are Redis's alone.
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- ms writes a time in milliseconds without the exponent that tostring would use.
local function ms(t)
  return string.format('%.0f', t)
end

-- split takes an entry's flat fields apart: the event's own fields in order, and
-- Streamkeel's bookkeeping by name, without its prefix "sk-". Names repeat: each is looked
-- at once a call. An entry without bookkeeping, as most are, is not copied.
local booked = {}
local function split(fields)
  local book, event, n = {}, fields, 0
  for i = 1, #fields, 2 do
    local name = fields[i]
    local short = booked[name]
    if short == nil then
      short = string.sub(name, 1, 3) == 'sk-' and string.sub(name, 4)
      booked[name] = short
    end
    if short then
      book[short] = fields[i + 1]
      if event == fields then
        event = {}
        while n < i - 1 do
          n = n + 1
          event[n] = fields[n]
        end
      end
    elseif event ~= fields then
      event[n + 1], event[n + 2] = name, fields[i + 1]
      n = n + 2
    end
  end
  return event, book
end

-- BOOK is the order in which bookkeeping is written; what is not named here is dropped.
local BOOK = {
  'origin', 'group', 'consumer', 'attempts', 'deliveries', 'reason', 'error', 'first', 'died', 'redrives',
  'firstdied', 'firstreason', 'firsterror', 'edited', 'editor', 'original', 'packed',
}

-- add appends an entry of the event's fields and the bookkeeping to a stream. Lua can
-- pass some 8,000 arguments: an entry of more fields, which no Streamkeel writes, is
-- packed into one.
local function add(key, event, book)
  local args = event
  if #event > 6000 then
    args = {}
    book.packed = cmsgpack.pack(event)
  end
  local n = #args
  for i = 1, #BOOK do
    local value = book[BOOK[i]]
    if value and value ~= '' then
      args[n + 1], args[n + 2] = 'sk-' .. BOOK[i], value
      n = n + 2
    end
  end
  return redis.call('XADD', key, '*', unpack(args, 1, n))
end

-- size is about what an entry holds, in bytes.
local function size(fields)
  local bytes = 0
  for i = 1, #fields do
    bytes = bytes + #fields[i]
  end
  return bytes
end

