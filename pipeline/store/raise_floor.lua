#!lua flags=allow-oom
-- Raise the floor of one partition. KEYS: 1 floors. ARGV: 1 incarnation, 2 partition, 3 offset.
-- Returns 0 where another incarnation is the current one, or none in this life of the server.

settle_life()
if redis.call('HGET', KEYS[1], 'incarnation') ~= ARGV[1] then return 0 end
local floor = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or '')
if not floor or floor < tonumber(ARGV[3]) then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
return 1
