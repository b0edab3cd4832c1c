#!lua flags=allow-oom
-- Restore what operators have set for accounts, after a flush. KEYS: those of control_lib.lua, 7 accounts. ARGV from 3:
-- account, its entry as JSON, for each. Returns 1 if the hash was not complete.

if redis.call('HEXISTS', KEYS[7], 'restored') == 1 then return 0 end
local is_changed = false
for index = 3, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[7], ARGV[index], ARGV[index + 1]) == 1 then is_changed = true end
end
redis.call('HSET', KEYS[7], 'restored', exact(now))
if is_changed then
  record('state_restored', 'the control store was empty', cjson.encode({ reasons = 'account_limits' }))
end
return 1
