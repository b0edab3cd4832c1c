#!lua flags=allow-oom
-- Raise the lowest offset of one partition. KEYS: 1 lowest offsets. ARGV: 1 incarnation, 2 partition, 3 offset.
-- Returns 0 if another incarnation is the current one, or if there is none in this life of the server.

settle_life()
local current = redis.call('HMGET', KEYS[1], 'fence', 'incarnation')
if current[1] ~= ARGV[1] or current[2] ~= earlier_name(ARGV[1]) then return 0 end
local lowest = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or '')
if not lowest or lowest < tonumber(ARGV[3]) then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
return 1
