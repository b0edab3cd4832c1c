#!lua flags=allow-oom
-- Set what holds for an account. KEYS: those of control_lib.lua, 7 accounts. ARGV from 3: account, the entry as JSON, most
-- accounts, why, data of the event as JSON. Returns 0 if there are too many.

-- One field of the hash is `restored`.
local count = redis.call('HLEN', KEYS[7]) - redis.call('HEXISTS', KEYS[7], 'restored')
if count >= tonumber(ARGV[5]) and redis.call('HEXISTS', KEYS[7], ARGV[3]) == 0 then return 0 end
redis.call('HSET', KEYS[7], ARGV[3], ARGV[4])
record('account_limit_set', ARGV[6], ARGV[7])
return 1
