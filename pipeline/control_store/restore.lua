#!lua flags=allow-oom
-- Restore what operators have set, after a flush. ARGV from 3: an override as 5 fields, or 5 times ''; bands as 7
-- fields, or 7 times ''; then reason, by, why, since, partition or '' for each pause. Returns 1 if the set was not
-- complete.

if redis.call('HEXISTS', KEYS[2], 'restored') == 1 then return 0 end

local added = {}
for index = 15, #ARGV, 5 do
  local reason, by, why, since, partition = unpack(ARGV, index, index + 4)
  local _, is_new = add_reason(reason, partition, by, why, since)
  if is_new then added[#added + 1] = reason_word(reason, partition) end
end
if ARGV[3] ~= '' and redis.call('EXISTS', KEYS[5]) == 0 then
  local rate, ends, by, why, since = unpack(ARGV, 3, 7)
  if tonumber(since) > now then  -- the clock was set back: no clock step makes it last more than twice its time
    ends, since = exact(tonumber(ends) + now - tonumber(since)), exact(now)
  end
  if tonumber(ends) > now then
    put_override(rate, ends, by, why, since)
    added[#added + 1] = 'override'
  end
end
if ARGV[8] ~= '' and redis.call('EXISTS', KEYS[6]) == 0 then
  put_bands(unpack(ARGV, 8, 14))
  added[#added + 1] = 'bands'
end
redis.call('HSET', KEYS[2], 'restored', exact(now))
record('state_restored', 'the control store was empty', cjson.encode({ reasons = table.concat(added, ' ') }))
settle_rate('the reasons to pause were restored')
return 1
