#!lua flags=allow-oom
-- Lower the lowest offset of one partition. KEYS: 1 lowest offsets. ARGV: 1 partition, 2 offset.

local lowest = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '')
if lowest and lowest > tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
