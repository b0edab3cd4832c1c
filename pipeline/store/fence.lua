#!lua flags=allow-oom
-- Make ARGV[1] the current incarnation of the log. KEYS: 1 floors. Returns the hash, or nothing where it is not
-- known to be complete.

redis.call('HSET', KEYS[1], 'incarnation', ARGV[1])
redis.call('HDEL', KEYS[1], 'claimed_at')
if redis.call('HEXISTS', KEYS[1], 'known') == 0 then return false end
return redis.call('HGETALL', KEYS[1])
