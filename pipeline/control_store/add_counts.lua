#!lua flags=allow-oom
-- Add to counters, once: an addition whose response was lost is repeated with the same number, and not applied twice.
-- KEYS: 1 counters, 2 the sender's last number. ARGV: 1 number, 2 seconds to remember it; then name, count for each.

if tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
for index = 3, #ARGV, 2 do
  redis.call('HINCRBYFLOAT', KEYS[1], ARGV[index], ARGV[index + 1])
end
return 1
