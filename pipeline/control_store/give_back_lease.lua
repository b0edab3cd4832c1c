#!lua flags=allow-oom
-- End the claim on KEYS[1] if it still has the token ARGV[1].

local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^%S+') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
