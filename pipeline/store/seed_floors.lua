#!lua flags=allow-oom
-- Raise floors to what PostgreSQL holds and mark them as complete. KEYS: 1 floors. ARGV: partition, offset for each.

for index = 1, #ARGV, 2 do
  local floor = tonumber(redis.call('HGET', KEYS[1], ARGV[index]) or '')
  if not floor or floor < tonumber(ARGV[index + 1]) then
    redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
redis.call('HSET', KEYS[1], 'known', '1')
return 1
