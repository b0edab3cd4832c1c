#!lua flags=no-writes
-- The slices of all ingest processes, as JSON. KEYS: 1 throttle. ARGV: 1 seconds for which a slice counts.

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6

local found = {}
for _, text in ipairs(redis.call('HVALS', KEYS[1])) do
  local at, slice = string.match(text, '^(%S+) (.*)$')
  at = tonumber(at)
  -- A slice from the future is from before the clock was set back.
  if at and at <= now and now - at <= tonumber(ARGV[1]) then found[#found + 1] = slice end
end
return found
