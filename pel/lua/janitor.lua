-- Deletes the names of consumers that have nothing pending and were not heard of for
-- too long. XGROUP DELCONSUMER discards what a consumer has pending, so the look and the
-- deletion are one step.
--
-- KEYS  1 the group's members  2 and on: the streams
-- ARGV  1 group  2 ms of silence  3 a consumer to delete whatever its silence (one that
--       leaves by itself), or ''
-- Reply the names deleted
local members, group, silence, leaver = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local oldest = now() - silence
local deleted, held = {}, {}
for k = 2, #KEYS do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[k], group)
  if not consumers.err then
    for _, c in ipairs(consumers) do
      local info = {}
      for i = 1, #c, 2 do
        info[c[i]] = c[i + 1]
      end
      local seen = tonumber(redis.call('ZSCORE', members, info.name) or 0)
      local quiet = info.idle >= silence and seen <= oldest
      if leaver ~= '' then
        quiet = info.name == leaver
      end
      if quiet and info.pending == 0 then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[k], group, info.name)
        deleted[info.name] = true
      elseif info.pending > 0 or not quiet then
        held[info.name] = true
      end
    end
  end
end
-- A member that never read has no name at the streams (ordered groups).
if leaver ~= '' then -- it lives no longer, whatever it left
  redis.call('ZREM', members, leaver)
else
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', oldest)) do
    deleted[name] = true
  end
end
local names = {}
for name in pairs(deleted) do
  if not held[name] then
    redis.call('ZREM', members, name)
    names[#names + 1] = name
  end
end
return names
