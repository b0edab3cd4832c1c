#!lua flags=allow-oom
-- What the mirror says; with ARGV[1], that incarnation of the log becomes the current one. KEYS: 1 floors.
-- Returns the hash.

settle_life()
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'incarnation', earlier_name(ARGV[1]))
  redis.call('HDEL', KEYS[1], 'claimed_at')  -- by which an earlier version would take the place again after a while
end
return redis.call('HGETALL', KEYS[1])
