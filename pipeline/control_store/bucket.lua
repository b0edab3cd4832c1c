#!lua flags=allow-oom
-- Take tokens from the global bucket: the arithmetic of pipeline/flow/bucket.py and of Decay in
-- pipeline/flow/rate.py, on the server and with its clock.
-- KEYS: 1 bucket, 2 processes
-- ARGV: 1 that of clock_lib.lua; keys of the control state that this script only reads: 2 rate, 3 pause, 4 override. They
--       are no KEYS, since Redis demands the right to write of each of KEYS, and ingest's user has none on these.
--       5 needed, 6 wanted, 7 process, 8 seconds of the rate that the full bucket holds, 9 seconds for which a rate stays
--       without a new publication, 10 seconds in which it then halves, 11 seconds after which a silent process is
--       forgotten, 12 tolerance in tokens, and for a flushed server: 13 rate, 14 its version, 15 floor; 16 publication
--       time of the newest rate that the caller knows, or '', 17 seconds since then by the caller's clock, 18 and 19 the
--       same of the override's `at`, 20 tokens that the caller gives back, 21 level of the need, 22 allowance of a level
--       (part of the rate), 23 to 26 reserves by level (parts of the burst)
-- Returns granted, wait in seconds, tokens left, rate, burst, version, live processes, when the rate was published (or
-- ''), seconds since then, the override's `at` (or ''), seconds since then, deferred tokens, and the level that deferred
-- them; fractions as text.

local needed, wanted = tonumber(ARGV[5]), tonumber(ARGV[6])
local hold_seconds, period_seconds, tolerance = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[12])

local function halvings(age)
  return math.max(0, age - hold_seconds) / period_seconds
end

-- Seconds since a time that was noted in the control state. The caller's clock decides if it knows that note already.
local function age_of(noted, known, known_age)
  return noted == known and tonumber(known_age) or elapsed_since(tonumber(noted))
end

-- An override whose time is up does not count, although no process may have ended it yet.
local held_rate = redis.call('HMGET', ARGV[4], 'until', 'at')
local noted, override_age = held_rate[2] or '', 0
local is_held, is_over = held_rate[1], false
if is_held and held_rate[2] then
  override_age = age_of(noted, ARGV[18], ARGV[19])
  is_over = tonumber(held_rate[1]) - tonumber(noted) <= override_age
end

local published = redis.call('HMGET', ARGV[2], 'rate', 'floor_rate', 'version', 'published_at', 'lag_known_at',
  'base_rate', 'low_rates')
local rate, version
local age = 0
if published[1] then
  rate, version = tonumber(published[1]), published[3]
  if is_over then
    rate = tonumber((capped_by_breaker(ARGV[3], published[6], published[2])))
    version = string.format('%.0f', tonumber(version) + 1)  -- the lowest under which the end may be recorded
  end
  -- The controller is silent, or had no new lag at its last publication: the rate continues to decay. A rate that an
  -- operator set does not decay, because it ends by itself.
  local published_at = tonumber(published[4])
  age = age_of(published[4], ARGV[16], ARGV[17])
  local decided_after = math.max(0, published_at - (tonumber(published[5]) or published_at))
  local steps = halvings(decided_after + age) - halvings(decided_after)
  if steps > 0 and (is_over or not is_held) then
    rate = math.max(math.min(rate, tonumber(published[2])), rate * 2 ^ -steps)
  end
else
  rate, version = capped_by_breaker(ARGV[3], tonumber(ARGV[13]), tonumber(ARGV[15])), ARGV[14]
end
local burst = math.max(1, math.floor(rate * tonumber(ARGV[8])))

-- Levels: 0 is the lowest. The indices of the reserves and of the fields of the allowances begin at 1.
local level, allowance = tonumber(ARGV[21]), tonumber(ARGV[22])
local LEVEL_HIGHEST = 3
local ALLOWANCES = { [1] = 'allowance_info', [2] = 'allowance_warn' }
local allowance_max = math.max(1, allowance * burst)

local function reserve_of(one)
  return tonumber(ARGV[23 + one]) * (burst - 1)
end

local held = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'rate', 'deferred', 'deferred_by', ALLOWANCES[1],
  ALLOWANCES[2], 'version')
local tokens, arrived = burst, 0
if held[1] then
  -- The lowest rate since the last call, also if no call saw it. An older version notes no version of the rate.
  local lowest, seen = math.min(rate, tonumber(held[3])), tonumber(held[8] or '') or math.huge
  for at, low in string.gmatch(published[7] or '', '(%d+):(%S+)') do
    if tonumber(at) > seen then lowest = math.min(lowest, tonumber(low)) end
  end
  arrived = elapsed_since(tonumber(held[2])) * lowest
  tokens = math.min(burst, tonumber(held[1]) + arrived)
end
tokens = math.min(burst, tokens + tonumber(ARGV[20]))

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
if granted < wanted and tokens + tolerance < burst then redis.call('HINCRBY', KEYS[1], 'ran_dry', 1) end
tokens = tokens - granted

local tokens_text, rate_text, deferred_text = exact(tokens), exact(rate), exact(deferred)
redis.call('HSET', KEYS[1], 'tokens', tokens_text, 'at', exact(now), 'rate', rate_text, 'version', version)
if next(allowances) then  -- levels are in use
  redis.call('HSET', KEYS[1], 'deferred', deferred_text, 'deferred_by', deferred_by, ALLOWANCES[1],
    exact(allowances[1]), ALLOWANCES[2], exact(allowances[2]))
end

redis.call('ZADD', KEYS[2], exact(now), ARGV[7])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[11]))
redis.call('ZREMRANGEBYSCORE', KEYS[2], '(' .. exact(now), '+inf')  -- entries from before the clock was set back
local live = redis.call('ZCARD', KEYS[2])

return { granted, exact(wait), tokens_text, rate_text, burst, version, live,
  published[4] or '', exact(age), noted, exact(override_age), deferred_text, deferred_by }
