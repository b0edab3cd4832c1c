#!lua flags=allow-oom
-- Add to counters. KEYS: 1 counters. ARGV: name, count for each.

for index = 1, #ARGV, 2 do
  redis.call('HINCRBYFLOAT', KEYS[1], ARGV[index], ARGV[index + 1])
end
return #ARGV / 2
