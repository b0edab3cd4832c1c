#!lua flags=allow-oom
-- End the claim on KEYS[1] if it still has token ARGV[1].

if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
