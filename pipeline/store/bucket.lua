#!lua flags=allow-oom
-- Take tokens from the global bucket: the arithmetic of pipeline/flow/bucket.py and of Decay in
-- pipeline/flow/rate.py, on the server and with its clock.
-- KEYS: those of control_lib.lua, 7 bucket, 8 processes
-- ARGV: those of control_lib.lua, 3 needed, 4 wanted, 5 process, 6 seconds of the rate that the full bucket holds,
--       7 seconds for which a rate stays without a new publication, 8 seconds in which it then halves, 9 seconds after
--       which a silent process is forgotten, 10 tolerance in tokens, and for a flushed server: 11 rate, 12 its version,
--       13 floor; 14 publication time of the newest rate that the caller knows, or '', 15 seconds since then by the
--       caller's clock, 16 tokens that the caller gives back, 17 level of the need, 18 allowance of a level (part of the
--       rate), 19 to 22 reserves by level (parts of the burst)
-- Returns granted, wait in seconds, tokens left, rate, burst, version, live processes, when the rate was published (or
-- ''), seconds since then, deferred tokens, and the level that deferred them; fractions as text.

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

-- Levels: 0 is the lowest. The indices of the reserves and of the fields of the allowances begin at 1.
local level, allowance = tonumber(ARGV[17]), tonumber(ARGV[18])
local LEVEL_HIGHEST = 3
local ALLOWANCES = { [1] = 'allowance_info', [2] = 'allowance_warn' }
local allowance_max = math.max(1, allowance * burst)

local function reserve_of(one)
  return tonumber(ARGV[19 + one]) * (burst - 1)
end

local held = redis.call('HMGET', KEYS[7], 'tokens', 'at', 'rate', 'deferred', 'deferred_by', ALLOWANCES[1],
  ALLOWANCES[2])
local tokens, arrived = burst, 0
if held[1] then
  arrived = elapsed_since(tonumber(held[2])) * math.min(rate, tonumber(held[3]))
  tokens = math.min(burst, tonumber(held[1]) + arrived)
end
tokens = math.min(burst, tokens + tonumber(ARGV[16]))

-- What of the deferred tokens is not paid: with them the bucket holds the reserve of their level at most.
local deferred, deferred_by = tonumber(held[4] or '0'), tonumber(held[5] or '0')
deferred = math.max(0, math.min(deferred - allowance * arrived, reserve_of(deferred_by) - tokens))
local allowances = {}
for one in pairs(ALLOWANCES) do
  local left = tonumber(held[5 + one] or '')
  if left then
    allowances[one] = math.min(allowance_max, left + allowance * arrived)
  elseif level < LEVEL_HIGHEST then
    allowances[one] = allowance_max
  end
end

-- Tokens that must arrive before the body passes, as one of this level.
local function missing(one)
  local reserve = reserve_of(one)
  local short = 1 + reserve - tokens
  if deferred > 0 and one > deferred_by and needed + reserve <= reserve_of(deferred_by) then
    short = math.min(short, (needed + reserve - tokens - deferred) / (1 - allowance))
  end
  return short
end

-- One token above the reserve is enough for any need: a larger one leaves the bucket in debt. An older version on the
-- same server writes the same fields, but not those of levels, and waits until a debt is paid.
local short = needed > 0 and missing(level) or -tokens
local wait = 0
if short > tolerance then
  wait = short / rate
  if ALLOWANCES[level] then
    local by_allowance = math.max((1 - allowances[level]) / allowance, missing(LEVEL_HIGHEST))
    if by_allowance <= tolerance then
      wait = 0
      allowances[level] = allowances[level] - needed
    else
      wait = math.min(wait, by_allowance / rate)
    end
  end
end
local granted
local spare = math.floor(tokens + deferred + tolerance)
if wait > 0 then
  granted = math.max(0, math.min(wanted - needed, spare))
else
  granted = math.max(needed, math.min(wanted, spare))
  if level < LEVEL_HIGHEST and needed > 0 then
    local of_reserve = math.min(needed - 1, reserve_of(level) - (tokens - needed))
    if of_reserve > deferred then deferred, deferred_by = of_reserve, level end
  end
end
-- The controller compares this count from tick to tick: the demand was above the rate. A full bucket proves that clients
-- did not use the rate. It may still hold less than a large body and a lease.
if granted < wanted and tokens + tolerance < burst then redis.call('HINCRBY', KEYS[7], 'ran_dry', 1) end
tokens = tokens - granted

local tokens_text, rate_text, deferred_text = exact(tokens), exact(rate), exact(deferred)
redis.call('HSET', KEYS[7], 'tokens', tokens_text, 'at', exact(now), 'rate', rate_text)
if next(allowances) then  -- levels are in use
  redis.call('HSET', KEYS[7], 'deferred', deferred_text, 'deferred_by', deferred_by, ALLOWANCES[1],
    exact(allowances[1]), ALLOWANCES[2], exact(allowances[2]))
end

redis.call('ZADD', KEYS[8], exact(now), ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', now - tonumber(ARGV[9]))
redis.call('ZREMRANGEBYSCORE', KEYS[8], '(' .. exact(now), '+inf')  -- entries from before the clock was set back
local live = redis.call('ZCARD', KEYS[8])

return { granted, exact(wait), tokens_text, rate_text, burst, version, live,
  published[4] or '', exact(age), deferred_text, deferred_by }
