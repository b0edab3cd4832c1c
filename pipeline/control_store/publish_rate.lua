#!lua flags=allow-oom
-- Publish a decided rate with the next version. ARGV from 3: base rate, floor rate, mode, lag or '', time at which the
-- lag was known or '', why, consumption as JSON or '', alarms as JSON, the policy's reason, its record as JSON or '',
-- the part of the last recorded rate by which a change must differ from it to be a control event, the accounts' shares as
-- JSON or ''. Returns the published rate as a hash.

settle_override()
local base_rate, floor_rate, mode, lag, known_at, why = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local last = redis.call('HMGET', KEYS[1], 'rate', 'mode', 'version', 'lag_known_at', 'recorded_rate',
  'recorded_version', 'low_rates')

-- A controller that was frozen during a tick decided on an older lag than the published one. A published time in the
-- future does not block the new rate: then the server's clock went backwards.
local last_known_at = tonumber(last[4] or '')
if last_known_at and last_known_at <= now and (tonumber(known_at) or last_known_at) < last_known_at then
  return redis.call('HGETALL', KEYS[1])
end

local effective, decided_by = effective_rate(base_rate, floor_rate)
local version = next_version(last[3])
redis.call('HSET', KEYS[1], 'version', version, 'rate', effective, 'base_rate', base_rate, 'floor_rate', floor_rate,
  'mode', mode, 'lag', lag, 'published_at', exact(now), 'lag_known_at', known_at, 'consumption', ARGV[9],
  'alarms', ARGV[10], 'alarms_at', exact(now), 'reason', ARGV[11], 'policy', ARGV[12], 'policy_at', exact(now),
  'event_ratio', ARGV[13], 'recorded_version', version, 'shares', ARGV[14], 'shares_at', exact(now), 'low_rates',
  with_low_rate(last[7], version, effective))
-- A process of an older version that changed the rate recorded that rate, but did not note it.
local previous = last[6] == last[3] and last[5] or last[1]
local difference = math.abs(tonumber(effective) - (tonumber(previous or '') or 0))
local is_notable = not previous or difference >= tonumber(ARGV[13]) * tonumber(previous)
if tonumber(last[1] or '') ~= tonumber(effective) and is_notable or last[2] ~= mode then
  record_rate(why, effective, decided_by, base_rate, mode, lag, version, previous, ARGV[11], ARGV[13])
end
return redis.call('HGETALL', KEYS[1])
