#!lua flags=allow-oom
-- Add a reason to pause, or keep an active one. ARGV from 3: reason, why, partition or ''. Returns its generation.

settle_override()
local reason, why, partition = ARGV[3], ARGV[4], ARGV[5]
local generation, is_new = add_reason(reason, partition, ARGV[2], why)
if not is_new then return generation end

local data = { reason = reason, generation = tostring(generation) }
if partition ~= '' then data.partition = partition end
data = cjson.encode(data)
if reason == 'breaker' then
  record('breaker_opened', why, data)
  why = 'the breaker opened'  -- the error is recorded once: the events that follow refer to their cause
end
record('paused', why, data)
settle_rate(why)
return generation
