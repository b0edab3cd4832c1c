#!lua flags=allow-oom
-- Add a reason to pause, or keep it where it holds. ARGV from 3: reason, why. Returns its generation.

settle_override()
local reason, why = ARGV[3], ARGV[4]
local held = redis.call('HGET', KEYS[2], reason)
if held then return generation_of(held) end

local generation = add_reason(reason, ARGV[2], why)
local data = cjson.encode({ reason = reason, generation = tostring(generation) })
if reason == 'breaker' then
  record('breaker_opened', why, data)
  why = 'the breaker opened'  -- the error is told once: what follows from it says what it follows from
end
record('paused', why, data)
settle_rate(why)
return generation
