#!lua flags=allow-oom
-- Raise lowest offsets to PostgreSQL's offsets and mark them as complete. KEYS: 1 lowest offsets.
-- ARGV: 1 the life in which PostgreSQL was read, then partition, offset for each. Returns 0 if that life is over.

if settle_life() ~= ARGV[1] then return 0 end
for index = 2, #ARGV, 2 do
  local lowest = tonumber(redis.call('HGET', KEYS[1], ARGV[index]) or '')
  if not lowest or lowest < tonumber(ARGV[index + 1]) then
    redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
redis.call('HSET', KEYS[1], 'complete', '1')
return 1
