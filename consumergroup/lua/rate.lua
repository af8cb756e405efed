-- Reserves events under a group's rate limit: GCRA, by the server's clock. The key holds the
-- theoretical arrival time: when the next event would come if all came evenly.
--
-- KEYS  1 the group's rate
-- ARGV  1 µs from one event to the next  2 burst  3 events wanted, negative to give back
--       4 '1' to take them whatever the limit: they were read already
-- Reply 1 events granted  2 ms until one may be granted, where none was
local t = redis.call('TIME')
local time = t[1] * 1000000 + t[2]
local interval, burst, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), time)
local free = time + burst * interval - arrival
local granted = want
if ARGV[4] ~= '1' then
  granted = math.min(want, math.floor(free / interval))
  if granted < 1 then
    return { 0, math.ceil((interval - free) / 1000) }
  end
end
arrival = math.max(arrival + granted * interval, time)
local ttl = math.ceil((arrival - time) / 1000)
if ttl > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', ttl)
else
  redis.call('UNLINK', KEYS[1])
end
return { granted, 0 }
