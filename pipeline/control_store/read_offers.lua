#!lua flags=no-writes
-- The reports of all ingest processes, as JSON. KEYS: 1 offers. ARGV: 1 seconds for which a report counts.

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6

local found = {}
for _, text in ipairs(redis.call('HVALS', KEYS[1])) do
  local at, report = string.match(text, '^(%S+) (.*)$')
  at = tonumber(at)
  if at and at <= now and now - at <= tonumber(ARGV[1]) then found[#found + 1] = report end
end
return found
