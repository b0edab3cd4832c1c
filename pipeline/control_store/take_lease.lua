#!lua flags=allow-oom
-- Claim KEYS[1] with token ARGV[1] for ARGV[2] seconds. Returns 1 if it was free.

if lease_holds(KEYS[1]) then return 0 end
local value = ARGV[1] .. ' ' .. string.format('%.17g', now) .. ' ' .. ARGV[2]
redis.call('SET', KEYS[1], value, 'PX', math.max(1, math.ceil(tonumber(ARGV[2]) * 1000)))
return 1
