#!lua flags=allow-oom
-- What the mirror says; with ARGV[1], that incarnation of the log becomes the current one. KEYS: 1 floors.
-- Returns the hash.

settle_life()
if ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'incarnation', ARGV[1]) end
return redis.call('HGETALL', KEYS[1])
