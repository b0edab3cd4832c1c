#!lua flags=allow-oom
-- Raise the floor of one partition. KEYS: 1 floors. ARGV: 1 incarnation, 2 partition, 3 offset, 4 seconds after which
-- a claim lapses. Returns 0 where another incarnation is the current one.

local server_time = redis.call('TIME')
local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'incarnation', 'claimed_at', ARGV[2])

-- On a flushed server nobody has fenced: the first drain claims the place for its incarnation. If that was a drain of
-- an incarnation already over, it ends within its time limit, and its claim must not shut out the others for ever.
local claimed_at = tonumber(held[2] or '')
if held[1] and held[1] ~= ARGV[1] and not (claimed_at and math.abs(now - claimed_at) > tonumber(ARGV[4])) then return 0 end
if not held[1] or claimed_at then
  redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'claimed_at', string.format('%.17g', now))
end

local floor = tonumber(held[3] or '')
if not floor or floor < tonumber(ARGV[3]) then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
return 1
