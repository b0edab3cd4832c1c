#!lua flags=allow-oom
-- Store the offset of each partition; partitions that are not given are forgotten. KEYS: 1 progress. ARGV: 1
-- milliseconds after which all of it is forgotten, then partition, offset for each. Returns for each the seconds since
-- its offset changed. The time between two calls counts as at least 0 and at most half of the first argument: if this
-- server's clock is stepped, the stored times are moved by the same amount.

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6
local fields = {}
for index = 2, #ARGV, 2 do fields[#fields + 1] = ARGV[index] end
local noted = #fields > 0 and redis.call('HMGET', KEYS[1], unpack(fields)) or {}
local passed = now - (tonumber(redis.call('HGET', KEYS[1], 'at') or '') or now)
local step = passed - math.min(math.max(passed, 0), tonumber(ARGV[1]) / 2000)
redis.call('DEL', KEYS[1])

local stood = {}
for index = 1, #fields do
  local offset = ARGV[2 * index + 1]
  local noted_offset, since = string.match(noted[index] or '', '^(%d+)@(.+)$')
  since = tonumber(since or '')
  since = since and since + step
  if noted_offset ~= offset or since > now then since = now end
  redis.call('HSET', KEYS[1], fields[index], offset .. '@' .. string.format('%.17g', since))
  stood[index] = string.format('%.17g', now - since)
end
if #fields > 0 then
  redis.call('HSET', KEYS[1], 'at', string.format('%.17g', now))
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return stood
