#!lua flags=allow-oom
-- Store the problems of a process, and forget those of processes that have not reported for long. A report from the
-- future is forgotten too: the server's clock was set back. One without a time, of an older version of Sluice, counts
-- from when it is first seen here. KEYS: 1 troubles, 2 the times of the reports.
-- ARGV: 1 process, 2 its problems as JSON or '', 3 milliseconds after which a report is forgotten.

if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  return 1
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d', now))
local times, reports = redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[1])
local timed = {}
for i = 1, #times, 2 do timed[times[i]] = true end
for i = 1, #reports, 2 do
  if not timed[reports[i]] then redis.call('HSET', KEYS[2], reports[i], string.format('%d', now)) end
end
for i = 1, #times, 2 do
  local age = now - times[i + 1]
  if age >= tonumber(ARGV[3]) or age < 0 then
    redis.call('HDEL', KEYS[1], times[i])
    redis.call('HDEL', KEYS[2], times[i])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
