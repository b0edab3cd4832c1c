#!lua flags=allow-oom
-- Store what was offered to an ingest process. KEYS: 1 offers. ARGV: 1 process, 2 the report as JSON, 3 seconds for which
-- a report counts.

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6

redis.call('HSET', KEYS[1], ARGV[1], string.format('%.17g', now) .. ' ' .. ARGV[2])
local held = redis.call('HGETALL', KEYS[1])
for index = 1, #held, 2 do
  local at = tonumber(string.match(held[index + 1], '^%S+'))
  -- A report from the future is from before the clock was set back.
  if not at or at > now or now - at > tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], held[index]) end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[3]) * 1000))
return 1
