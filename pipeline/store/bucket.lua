#!lua flags=allow-oom
-- Take tokens from the global bucket: the arithmetic of pipeline/flow/bucket.py and of Decay in
-- pipeline/flow/rate.py, on the server and with its clock.
-- KEYS: those of control_lib.lua, 7 bucket, 8 processes
-- ARGV: those of control_lib.lua, 3 needed, 4 wanted, 5 process, 6 seconds of the rate that the full bucket holds,
--       7 seconds for which a rate stays without a new publication, 8 seconds in which it then halves, 9 seconds after
--       which a silent process is forgotten, 10 tolerance in tokens, and for a flushed server: 11 rate, 12 its version,
--       13 floor; 14 publication time of the newest rate that the caller knows, or '', 15 seconds since then by the
--       caller's clock, 16 tokens that the caller gives back
-- Returns granted, wait in seconds, tokens left, rate, burst, version, live processes, when the rate was published (or
-- ''), and seconds since then; fractions as text.

local needed, wanted = tonumber(ARGV[3]), tonumber(ARGV[4])
local hold_seconds, period_seconds, tolerance = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[10])

settle_override()

local function halvings(age)
  return math.max(0, age - hold_seconds) / period_seconds
end

local published = redis.call('HMGET', KEYS[1], 'rate', 'floor_rate', 'version', 'published_at', 'lag_known_at')
local rate, version
local age = 0
if published[1] then
  rate, version = tonumber(published[1]), published[3]
  -- The controller is silent, or had no new lag at its last publication: the rate continues to decay. A rate that an
  -- operator set does not decay, because it ends by itself.
  local published_at = tonumber(published[4])
  age = published[4] == ARGV[14] and tonumber(ARGV[15]) or elapsed_since(published_at)
  local decided_after = math.max(0, published_at - (tonumber(published[5]) or published_at))
  local steps = halvings(decided_after + age) - halvings(decided_after)
  if steps > 0 and redis.call('EXISTS', KEYS[5]) == 0 then
    rate = math.max(math.min(rate, tonumber(published[2])), rate * 2 ^ -steps)
  end
else
  rate, version = capped_by_breaker(tonumber(ARGV[11]), tonumber(ARGV[13])), ARGV[12]
end
local burst = math.max(1, math.floor(rate * tonumber(ARGV[6])))

local held = redis.call('HMGET', KEYS[7], 'tokens', 'at', 'rate')
local tokens = burst
if held[1] then
  tokens = math.min(burst, tonumber(held[1]) + elapsed_since(tonumber(held[2])) * math.min(rate, tonumber(held[3])))
end
tokens = math.min(burst, tokens + tonumber(ARGV[16]))

-- One token is enough for any need: a larger one leaves the bucket in debt. An older version on the same server writes
-- the same fields and waits until a debt is paid.
local threshold = math.min(needed, 1)
local granted, wait = 0, 0
if tokens + tolerance < threshold then
  wait = (threshold - tokens) / rate
else
  granted = math.max(needed, math.min(wanted, math.floor(tokens + tolerance)))
end
-- The controller compares this count from tick to tick: the demand was above the rate. A full bucket proves that clients
-- did not use the rate. It may still hold less than a large body and a lease.
if granted < wanted and tokens + tolerance < burst then redis.call('HINCRBY', KEYS[7], 'ran_dry', 1) end
tokens = tokens - granted

local tokens_text, rate_text = exact(tokens), exact(rate)
redis.call('HSET', KEYS[7], 'tokens', tokens_text, 'at', exact(now), 'rate', rate_text)

redis.call('ZADD', KEYS[8], exact(now), ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', now - tonumber(ARGV[9]))
redis.call('ZREMRANGEBYSCORE', KEYS[8], '(' .. exact(now), '+inf')  -- entries from before the clock was set back
local live = redis.call('ZCARD', KEYS[8])

return { granted, exact(wait), tokens_text, rate_text, burst, version, live,
  published[4] or '', exact(age) }
