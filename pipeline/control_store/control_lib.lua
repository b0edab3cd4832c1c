-- Shared by the scripts that change the control state; pipeline/control_store/connection.py inserts it at the start of each,
-- after clock_lib.lua.
-- KEYS: 1 rate, 2 pause, 3 pause:generation, 4 events, 5 override, 6 bands.
-- ARGV: 1 that of clock_lib.lua, 2 by (the actor).

-- Events that the system repeats while something is wrong, and the fields that make two of a kind the same. The numbers
-- are those of pipeline/control_store/common.py. Actions of a person are never folded; so of the reasons to pause only the
-- breaker's is.
local FOLDED_BY = {
  rate_changed = { 'previous', 'rate', 'mode', 'decided_by' },
  breaker_opened = {},
  breaker_closed = {},
  paused = { 'reason' },
  resumed = { 'reason', 'left' },
  state_restored = { 'reasons' },
  drainer_terminated = { 'partition' },
  began_late = { 'partition', 'end', 'committed' }
}
-- A policy whose rate moves at each tick has an event ratio. Its changes of one mode and cause are one event, from the
-- first rate to the newest. An operator's rate is not the policy's.
local MOVES_FOLDED_BY = { 'event_ratio', 'mode', 'decided_by' }
local FOLD_SECONDS, FOLD_ENTRIES = 600, 50

local function moves(data)
  return data.event_ratio and data.decided_by ~= 'override'
end

-- The data of an entry as a table; nil if a process of another version wrote what this one can't read.
local function read_data(text)
  local is_read, found = pcall(cjson.decode, text)
  return is_read and type(found) == 'table' and found or nil
end

local function is_same(fields, one, other)
  for _, field in ipairs(fields) do
    if one[field] ~= other[field] then return false end
  end
  return true
end

-- The entry that an event repeats: its position, its count, the time of the first event, and the data of both together;
-- nothing if there is none.
local function repeated_entry(kind, data)
  local fields, told = FOLDED_BY[kind], cjson.decode(data)
  if not fields or (told.reason and told.reason ~= 'breaker') then return end
  if moves(told) then fields = MOVES_FOLDED_BY end
  for _, entry in ipairs(redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', FOLD_ENTRIES)) do
    local position, found = entry[1], {}
    local at = tonumber(string.match(position, '^%d+')) / 1000
    if now - at > FOLD_SECONDS then return end
    for index = 1, #entry[2], 2 do found[entry[2][index]] = entry[2][index + 1] end
    local earlier = found.kind == kind and read_data(found.data)
    if earlier and is_same(fields, told, earlier) then
      if moves(told) then
        told.previous = earlier.previous
        data = cjson.encode(told)
      end
      return position, tonumber(found.count) or 1, found.first_at or exact(at), data
    end
  end
end

-- An event that repeats an earlier one replaces it at the end of the stream: repetition must not push out other events.
local function record(kind, why, data)
  local position, count, first_at, together = repeated_entry(kind, data)
  local repeats = {}
  if position then
    redis.call('XDEL', KEYS[4], position)
    repeats = { 'count', tostring(count + 1), 'first_at', first_at }
  end
  redis.call('XADD', KEYS[4], 'MAXLEN', events_max, '*', 'kind', kind, 'by', ARGV[2], 'why', why, 'data',
    together or data, unpack(repeats))
end

-- Versions follow the clock if possible, so that they also grow across a flush of the server.
local function next_version(last)
  return string.format('%.0f', math.max((tonumber(last) or 0) + 1, math.floor(now * 1000)))
end

-- The rates that the bucket may have missed between two of its calls, as `version:rate`: `with_low_rate` of
-- pipeline/flow/rate.py.
local LOW_RATES_MAX = 8

local function with_low_rate(text, version, effective)
  local kept = {}
  for at, low in string.gmatch(text or '', '(%d+):(%S+)') do
    if tonumber(low) < tonumber(effective) then kept[#kept + 1] = { at, low } end
  end
  kept[#kept + 1] = { version, effective }
  if #kept > LOW_RATES_MAX then
    kept[2][2] = kept[1][2]
    table.remove(kept, 1)
  end
  for index, one in ipairs(kept) do kept[index] = one[1] .. ':' .. one[2] end
  return table.concat(kept, ' ')
end

-- An operator's rate replaces the policy's. While the breaker is open, the floor limits both. Returns the rate, and
-- what decided it: `breaker`, `override` or `lag`.
local function effective_rate(base_rate, floor_rate)
  local by_hand = redis.call('HGET', KEYS[5], 'rate')
  local rate, is_capped = capped_by_breaker(KEYS[2], by_hand or base_rate, floor_rate)
  return rate, is_capped and 'breaker' or by_hand and 'override' or 'lag'
end

-- `ratio`: the policy's event ratio; nil or 0: each change is an event of its own.
local function record_rate(why, effective, decided_by, base_rate, mode, lag, version, previous, reason, ratio)
  redis.call('HSET', KEYS[1], 'recorded_rate', effective)
  record('rate_changed', why, cjson.encode({
    rate = effective, decided_by = decided_by, base_rate = base_rate, mode = mode, lag = lag, version = version,
    previous = previous or '', policy_reason = reason or '',
    event_ratio = (tonumber(ratio or '') or 0) > 0 and ratio or nil
  }))
end

-- After a change of the reasons: update the effective rate in the same step.
local function settle_rate(why)
  local last = redis.call('HMGET', KEYS[1], 'rate', 'base_rate', 'floor_rate', 'version', 'mode', 'lag', 'reason',
    'policy_at', 'published_at', 'event_ratio', 'low_rates')
  if not last[1] then return end
  local effective, decided_by = effective_rate(last[2], last[3])
  if tonumber(effective) == tonumber(last[1]) then return end
  local version = next_version(last[4])
  redis.call('HSET', KEYS[1], 'rate', effective, 'version', version, 'recorded_version', version, 'low_rates',
    with_low_rate(last[11], version, effective))
  local is_current = last[8] == last[9]  -- a controller of an older version publishes no reason and no ratio
  local reason, ratio = is_current and last[7], is_current and last[10] or nil
  record_rate(why, effective, decided_by, last[2], last[5], last[6], version, last[1], reason, ratio)
end

-- A reason's entry; an entry that can't be read still pauses, and can be lifted.
local function read_entry(text)
  local is_read, entry = pcall(cjson.decode, text)
  return is_read and type(entry) == 'table' and entry.generation and entry or { generation = 0 }
end

-- A reason for some partitions only is also one field; the oldest partition's values come first. A process of a version
-- that does not know `partitions` then treats the whole system as paused, which is the safe side.
local function put_partitions(reason, partitions)
  local oldest
  for _, one in pairs(partitions) do
    if not oldest or one.generation < oldest.generation then oldest = one end
  end
  if not oldest then
    redis.call('HDEL', KEYS[2], reason)
    return
  end
  redis.call('HSET', KEYS[2], reason, cjson.encode({
    generation = oldest.generation, since = oldest.since, by = oldest.by, why = oldest.why, partitions = partitions
  }))
end

-- Add a reason for a partition, or for the whole system ('' as partition). Returns its generation, and whether it is
-- new: a reason for the whole system covers every partition, and replaces their entries.
local function add_reason(reason, partition, by, why, since)
  local entry = redis.call('HGET', KEYS[2], reason)
  local held = entry and read_entry(entry)
  if held and not held.partitions then return held.generation, false end
  local partitions = held and held.partitions or {}
  if partitions[partition] then return partitions[partition].generation, false end

  local one = { generation = redis.call('INCR', KEYS[3]), since = since or exact(now), by = by, why = why }
  if partition == '' then
    redis.call('HSET', KEYS[2], reason, cjson.encode(one))
  else
    partitions[partition] = one
    put_partitions(reason, partitions)
  end
  return one.generation, true
end

local function reason_word(reason, partition)
  return partition == '' and reason or reason .. ':' .. partition
end

-- The reasons that are still active, sorted; those of a partition as `reason:partition`.
local function words_of_reasons()
  local words = {}
  local fields = redis.call('HGETALL', KEYS[2])
  for index = 1, #fields, 2 do
    if fields[index] ~= 'restored' then
      local partitions = read_entry(fields[index + 1]).partitions
      for partition in pairs(partitions or { [''] = true }) do
        words[#words + 1] = reason_word(fields[index], partition)
      end
    end
  end
  table.sort(words)
  return table.concat(words, ' ')
end

-- An override lasts for a duration. If the clock was stepped since the last script, the override's times are moved by
-- the same amount. (`at`: time of the last script.)
local function keep_override_in_step()
  local held = redis.call('HMGET', KEYS[5], 'until', 'since', 'at')
  if not held[1] then return end
  local at = tonumber(held[3] or '') or now
  local step = now - at - elapsed_since(at)
  redis.call('HSET', KEYS[5], 'at', exact(now))
  if step ~= 0 then
    redis.call('HSET', KEYS[5], 'until', exact(tonumber(held[1]) + step), 'since', exact(tonumber(held[2]) + step))
  end
end
keep_override_in_step()

-- End an override whose time is up. The first of these scripts to run does it, before anything else. No controller is
-- needed: until then, readers of the state and the bucket know by the time that it has ended.
local function settle_override()
  local held = redis.call('HMGET', KEYS[5], 'until', 'rate')
  if not held[1] or tonumber(held[1]) > now then return end
  redis.call('DEL', KEYS[5])
  record('override_ended', 'its time was up', cjson.encode({ rate = held[2] }))
  settle_rate('the override ended')
end

local function put_override(rate, ends, by, why, since)
  redis.call('HSET', KEYS[5], 'rate', rate, 'until', ends, 'by', by, 'why', why, 'since', since, 'at', exact(now))
end

local function put_bands(rate_max, rate_min, lag_degraded, lag_critical, by, why, since)
  redis.call('HSET', KEYS[6], 'rate_max', rate_max, 'rate_min', rate_min, 'lag_degraded', lag_degraded,
    'lag_critical', lag_critical, 'by', by, 'why', why, 'since', since)
end
