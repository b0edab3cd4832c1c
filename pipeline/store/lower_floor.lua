#!lua flags=allow-oom
-- Bring the floor of one partition down. KEYS: 1 floors. ARGV: 1 partition, 2 offset.

local floor = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '')
if floor and floor > tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
