-- Deletes what a group has at a stream.
--
-- KEYS  1 the stream  2 the group's members  3 its hash  4 its retry stream  5 its due set
--       6 its attempts  7 its letters
-- ARGV  1 group  2 ms of silence after which a consumer does not live  3 '1' to delete
--       whoever lives  4 '1' to delete the letters too
-- Reply the number of living consumers, where that kept it from deleting; else 0
if ARGV[3] ~= '1' then
  local heard, living = {}, 0
  local function hear(name)
    if not heard[name] then
      heard[name], living = true, living + 1
    end
  end
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], now() - tonumber(ARGV[2]), '+inf', 'BYSCORE')) do
    hear(name)
  end
  for _, key in ipairs({ KEYS[1], KEYS[4] }) do -- one that began just now has read, and told nothing yet
    local consumers = redis.pcall('XINFO', 'CONSUMERS', key, ARGV[1])
    for _, c in ipairs(consumers.err and {} or consumers) do
      local info = {}
      for i = 1, #c, 2 do
        info[c[i]] = c[i + 1]
      end
      if info.idle < tonumber(ARGV[2]) then
        hear(info.name)
      end
    end
  end
  if living > 0 then
    return living
  end
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
end
redis.call('UNLINK', unpack(KEYS, 2, ARGV[4] == '1' and 7 or 6))
return 0
