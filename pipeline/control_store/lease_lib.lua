-- Shared by the scripts that take and check leases.
-- A lease is a string `token taken_at seconds`. Its time to live only cleans it up: it follows the server's wall clock,
-- and lasts longer if that is set back.

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6

-- A lease that was taken in the future is void: the clock was set back since. So no clock step makes a lease last more
-- than twice as long.
local function lease_holds(key)
  local held = redis.call('GET', key)
  if not held then return false end
  local taken_at, seconds = string.match(held, ' (%S+) (%S+)$')
  if not taken_at then return true end
  return tonumber(taken_at) <= now and now < tonumber(taken_at) + tonumber(seconds)
end
