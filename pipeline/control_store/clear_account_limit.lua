#!lua flags=allow-oom
-- Return to the settings of an account. KEYS: those of control_lib.lua, 7 accounts. ARGV from 3: account, why. Returns 1 if
-- an operator had set something.

if redis.call('HDEL', KEYS[7], ARGV[3]) == 0 then return 0 end
record('account_limit_ended', ARGV[4], cjson.encode({ account = ARGV[3] }))
return 1
