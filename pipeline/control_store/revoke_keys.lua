#!lua flags=allow-oom
-- Remove API keys from the mirror, and remember that PostgreSQL may still have them. KEYS: 1 keys. ARGV: ids.
-- Returns 0 if the keys are unknown: then nothing is removed.

local version = redis.call('HGET', KEYS[1], 'version')
if not version then return 0 end
local stored, count = string.match(version, '^(.*)%.(%d+)$')
for _, id in ipairs(ARGV) do
  redis.call('HDEL', KEYS[1], id)
  redis.call('HSET', KEYS[1], '-' .. id, '1')
end
redis.call('HSET', KEYS[1], 'version', stored .. '.' .. string.format('%d', tonumber(count) + 1))
return 1
