#!lua flags=allow-oom
-- Rebuild the set of reasons after a flush. ARGV from 3: reason, by, why for each. Returns 1 when it was not complete.

if redis.call('HEXISTS', KEYS[2], 'restored') == 1 then return 0 end

local added = {}
for index = 3, #ARGV, 3 do
  if redis.call('HEXISTS', KEYS[2], ARGV[index]) == 0 then
    add_reason(ARGV[index], ARGV[index + 1], ARGV[index + 2])
    added[#added + 1] = ARGV[index]
  end
end
redis.call('HSET', KEYS[2], 'restored', exact(now))
record('state_restored', 'the control store knew nothing', cjson.encode({ reasons = table.concat(added, ' ') }))
settle_rate('the reasons to pause were restored')
return 1
