#!lua flags=allow-oom
-- Lift a reason. ARGV from 3: reason, the generation that it must have or '', why. Returns 1 when it was lifted.

settle_override()
local reason, generation, why = ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('HGET', KEYS[2], reason)
if not held then return 0 end
local held_generation = generation_of(held)
if generation ~= '' and tonumber(generation) ~= held_generation then return 0 end

redis.call('HDEL', KEYS[2], reason)
redis.call('INCR', KEYS[3])
-- It goes on only when no other reason holds: whoever reads of the lifted one is told.
local left = {}
for _, other in ipairs(redis.call('HKEYS', KEYS[2])) do
  if other ~= 'restored' then left[#left + 1] = other end
end
table.sort(left)
local data = cjson.encode({
  reason = reason, generation = tostring(held_generation), left = table.concat(left, ' ')
})
if reason == 'breaker' then
  record('breaker_closed', why, data)
  why = 'the breaker closed'
end
record('resumed', why, data)
settle_rate(why)
return 1
