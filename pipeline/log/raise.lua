#!lua flags=allow-oom
-- Store the fenced incarnation of the log, and the lowest offsets that were read with it. Also runs at maxmemory: it stores
-- only a few bytes, and the append itself must report that there is no room.
--
-- An incarnation may begin without the tail of the one before. The caller knows up to where records were acknowledged,
-- as far as it has seen that. So this counts how many of them are lost: those at the end that are not stored either.
--
-- KEYS: 1 log id, 2 ends, 3… the stream of each partition, from partition 0.
-- ARGV: 1 expected log id, 2 incarnation, then partition, lowest offset and acknowledged end (0: unknown) for each.
-- Returns 'OTHER' (this is another log) or 'OK'.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'OTHER' end

local function last_sequence(key)
  if redis.call('EXISTS', key) == 0 then return 0 end
  local facts = redis.call('XINFO', 'STREAM', key)
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then return tonumber(string.match(facts[i + 1], '%-(%d+)$')) end
  end
end

local function noted(field)
  return tonumber(redis.call('HGET', KEYS[2], field) or '') or 0
end

local function text(number)
  return string.format('%.0f', number)
end

local is_new = redis.call('HGET', KEYS[2], 'incarnation') ~= ARGV[2]

for index = 3, #ARGV, 3 do
  local field, lowest = 'f' .. ARGV[index], tonumber(ARGV[index + 1])
  if noted(field) < lowest then redis.call('HSET', KEYS[2], field, ARGV[index + 1]) end
end

-- Only the first fence of an incarnation knows where it begins: nothing is appended before, and no record of it is
-- stored. A writer of an older version may have been first. Then nothing is counted.
if is_new then
  for p = 0, #KEYS - 3 do
    local begin = math.max(noted('e' .. p), last_sequence(KEYS[p + 3]), noted('f' .. p))
    redis.call('HSET', KEYS[2], 's' .. p, text(begin), 'l' .. p, '0')
  end
  redis.call('HSET', KEYS[2], 'incarnation', ARGV[2], 'begun', ARGV[2])
end

local is_counted = redis.call('HGET', KEYS[2], 'begun') == ARGV[2]
for index = 3, #ARGV, 3 do
  local p, acknowledged = ARGV[index], tonumber(ARGV[index + 2])
  local lost = acknowledged - noted('s' .. p)
  if is_counted and lost > noted('l' .. p) then
    redis.call('HSET', KEYS[2], 'l' .. p, text(lost), 'lost_at', redis.call('TIME')[1])
  end
end
return 'OK'
