#!lua
-- Store what an ingest process refused. KEYS: 1 throttle. ARGV: 1 seconds for which a slice counts; then field, slice as
-- JSON, for each slice.
-- No allow-oom: at the memory limit, memory is left for data that the system needs. The next report has these slices too.

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6

local is_new = false
for index = 2, #ARGV, 2 do
  local is_added = redis.call('HSET', KEYS[1], ARGV[index], string.format('%.17g', now) .. ' ' .. ARGV[index + 1])
  is_new = is_new or is_added == 1
end
-- The slices of processes that have ended. A process has a bounded number of fields, so this is only needed if some are
-- new.
if is_new then
  local held = redis.call('HGETALL', KEYS[1])
  for index = 1, #held, 2 do
    local at = tonumber(string.match(held[index + 1], '^%S+'))
    if not at or at > now or now - at > tonumber(ARGV[1]) then redis.call('HDEL', KEYS[1], held[index]) end
  end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[1]) * 1000))
return 1
