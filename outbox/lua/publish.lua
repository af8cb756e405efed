-- Adds rows of one outbox batch to a stream, each once, if the stream holds what came before them. The checks come before
-- the first XADD, since Lua does not roll back; after it nothing can fail but XADD itself, and then the position tells how
-- far it came.
--
-- KEYS  1 the stream  2 its relay hash: system, batch, row, tag
-- ARGV  1 system: the database that the rows come from  2 batch  3 the batch's tag
--       4 and 5 batch and row of the last row that the relay knows to be in the stream, 0 0 for none
--       6 how many rows  their numbers, and their entries
-- Reply 1 ok
--         gap      the stream ends before that row: Redis lost its tail; nothing was added
--         unknown  it should hold rows, and knows of none: it is gone, or this is another Redis
--         ahead    it holds rows that the relay knows nothing of
--         foreign  it holds rows of another database (reply 4)
--         refused  XADD failed (reply 4); rows up to the position were added
--       2 and 3 batch and row of the last row that the stream holds now
local stream, relay = KEYS[1], KEYS[2]
local batch, tag = ARGV[2], ARGV[3]
local prev_batch, prev_row = tonumber(ARGV[4]), tonumber(ARGV[5])

local at = redis.call('HMGET', relay, 'system', 'batch', 'row', 'tag')
if redis.call('EXISTS', stream) == 0 then
  at = { false, false, false, false } -- a position without its stream says nothing
end
local held_batch, held_row = at[2] or '0', at[3] or '0'
local hb, hr = tonumber(held_batch), tonumber(held_row)
if at[1] and at[1] ~= ARGV[1] then
  return { 'foreign', held_batch, held_row, at[1] }
end
if hb < prev_batch or hb == prev_batch and hr < prev_row then
  return { hb == 0 and 'unknown' or 'gap', held_batch, held_row }
end
if (hb ~= prev_batch or hr ~= prev_row) and (held_batch ~= batch or at[4] ~= tag) then
  return { 'ahead', held_batch, held_row }
end

local skip = held_batch == batch and hr or -1
local rows, refused = tonumber(ARGV[6]), nil
local next = 7 + rows
for n = 1, rows do
  local row = ARGV[6 + n]
  local fields, count
  fields, count, next = entry(next)
  if tonumber(row) > skip then
    local reply = redis.pcall('XADD', stream, '*', unpack(fields, 1, count))
    if reply.err then
      refused = reply.err
      break
    end
    held_batch, held_row = batch, row
  end
end
if held_batch == batch then
  redis.call('HSET', relay, 'system', ARGV[1], 'batch', held_batch, 'row', held_row, 'tag', tag)
end
if refused then
  return { 'refused', held_batch, held_row, refused }
end
return { 'ok', held_batch, held_row }
