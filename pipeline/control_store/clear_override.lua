#!lua flags=allow-oom
-- End an override early. ARGV from 3: why. Returns 1 if one was active.

settle_override()
local rate = redis.call('HGET', KEYS[5], 'rate')
if not rate then return 0 end
redis.call('DEL', KEYS[5])
record('override_ended', ARGV[3], cjson.encode({ rate = rate }))
settle_rate(ARGV[3])
return 1
