#!lua flags=allow-oom
-- Replace the mirror of the API keys. KEYS: 1 keys. ARGV: 1 version that it must have (nothing: it is unknown), 2 its new
-- version; then id, key as JSON, for each. Returns 0 if it has another version.

if (redis.call('HGET', KEYS[1], 'version') or '') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
for index = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
redis.call('HSET', KEYS[1], 'version', ARGV[2])
return 1
