#!lua
-- Add to the totals of all ingest processes. With a sample, also write an entry that contains the totals.
-- KEYS: 1 totals, 2 entries. ARGV: 1 sample as JSON or '', 2 entries kept, 3 milliseconds to live, then name, count, …
-- No allow-oom: at the memory limit, Redis refuses history first, and memory is left for data that the system needs.

local names = {}
for i = 4, #ARGV, 2 do
  names[#names + 1] = ARGV[i]
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if ARGV[1] ~= '' then
  local totals = redis.call('HMGET', KEYS[1], unpack(names))
  redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[2], '*', 'c', table.concat(totals, ' '), 's', ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
