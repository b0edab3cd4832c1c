#!lua flags=allow-oom
-- Lower the floor of one partition. KEYS: 1 floors. ARGV: 1 partition, 2 offset.

local floor = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '')
if floor and floor > tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
