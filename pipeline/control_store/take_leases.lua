#!lua flags=allow-oom
-- Claim the KEYS in their order, up to the first one that another holds: each with token ARGV[1], KEYS[i] for ARGV[i + 1]
-- seconds. Returns the number of claims.

for number, key in ipairs(KEYS) do
  if lease_holds(key) then return number - 1 end
  local seconds = ARGV[number + 1]
  local value = ARGV[1] .. ' ' .. string.format('%.17g', now) .. ' ' .. seconds
  redis.call('SET', key, value, 'PX', math.max(1, math.ceil(tonumber(seconds) * 1000)))
end
return #KEYS
