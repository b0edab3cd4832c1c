#!lua flags=allow-oom
-- Lift a reason. ARGV from 3: reason, the generation that it must have or '', why, partition or '' for all of it.
-- Returns 1 if it was lifted.

settle_override()
local reason, generation, why, partition = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local entry = redis.call('HGET', KEYS[2], reason)
if not entry then return 0 end
local held = read_entry(entry)
local lifted = held
if partition ~= '' then lifted = (held.partitions or {})[partition] end
if not lifted then return 0 end
if generation ~= '' and tonumber(generation) ~= lifted.generation then return 0 end

if partition == '' then
  redis.call('HDEL', KEYS[2], reason)
else
  held.partitions[partition] = nil
  put_partitions(reason, held.partitions)
end
redis.call('INCR', KEYS[3])
-- Consumption resumes only if no other reason is active: the event lists the remaining reasons.
local data = { reason = reason, generation = tostring(lifted.generation), left = words_of_reasons() }
if partition ~= '' then data.partition = partition end
data = cjson.encode(data)
if reason == 'breaker' then
  record('breaker_closed', why, data)
  why = 'the breaker closed'
end
record('resumed', why, data)
settle_rate(why)
return 1
