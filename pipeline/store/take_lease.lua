#!lua flags=allow-oom
-- Claim KEYS[1] with token ARGV[1] for ARGV[2] milliseconds. Returns 1 when it was free.

if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
