-- Shared by the scripts that read the control state; pipeline/control_store/connection.py inserts it at the start of each.
-- ARGV: 1 number of control events to keep, a space, and the seconds since the caller's last script of these (nothing:
--       this is its first).

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6
local events_max, since_last = string.match(ARGV[1], '^(%d+) ?(.*)$')
local elapsed_max = tonumber(since_last) or math.huge

-- Seconds since the time stored by an earlier script. The server's wall clock may be stepped at any time, so the result
-- is never negative, and never more than the caller's own monotonic clock allows.
local function elapsed_since(noted_at)
  return math.max(0, math.min(now - noted_at, elapsed_max))
end

-- 17 digits preserve a double exactly.
local function exact(value)
  return string.format('%.17g', value)
end

-- At most the floor while the breaker is open: `capped_by_breaker` of pipeline/flow/rate.py.
local function capped_by_breaker(pause_key, rate, floor_rate)
  local is_capped = redis.call('HEXISTS', pause_key, 'breaker') == 1 and tonumber(floor_rate) < tonumber(rate)
  return is_capped and floor_rate or rate, is_capped
end
