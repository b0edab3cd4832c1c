#!lua flags=allow-oom
-- Store the fenced incarnation of the log, and the floors that were read with it. Also runs at maxmemory: it stores
-- only a few bytes, and the append itself must report that there is no room.
--
-- KEYS: 1 log id, 2 ends. ARGV: 1 expected log id, 2 incarnation, then partition, floor for each.
-- Returns 'OTHER' (this is another log) or 'OK'.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'OTHER' end
redis.call('HSET', KEYS[2], 'incarnation', ARGV[2])
for index = 3, #ARGV, 2 do
  local field, floor = 'f' .. ARGV[index], ARGV[index + 1]
  if tonumber(redis.call('HGET', KEYS[2], field) or 0) < tonumber(floor) then
    redis.call('HSET', KEYS[2], field, floor)
  end
end
return 'OK'
