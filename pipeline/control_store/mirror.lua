#!lua flags=allow-oom
-- Return the content of the mirror; with ARGV[1], that incarnation of the log becomes the current one. KEYS: 1 lowest offsets.
-- Returns the hash.

settle_life()
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'incarnation', earlier_name(ARGV[1]))
  redis.call('HDEL', KEYS[1], 'claimed_at')  -- with it an earlier version would take over again after some time
end
return redis.call('HGETALL', KEYS[1])
