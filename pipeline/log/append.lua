#!lua
-- Append a group of entries to the streams of all partitions: all of them or, where it refuses, none.
--
-- No `allow-oom` in the first line: Redis refuses the script as a whole at maxmemory, before its first command.
--
-- KEYS: 1 log id, 2… the stream of each partition, from partition 0.
-- ARGV: 1 expected log id, 2 most entries that all streams may hold (0: no bound); then three for each partition:
--       floor (the next offset that may be used, where a restart made that uncertain; 0: nothing to raise),
--       known (the highest sequence number that the caller has seen there), number of entries;
--       then the entries' values, partition by partition.
-- Returns 'OTHER' (this is another log), 'FULL', or 'OK' with the last id written to each partition ('' for none).

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'OTHER'} end

local partitions = #KEYS - 1
local values_at = 2 + 3 * partitions
local held = 0
for p = 1, partitions do held = held + redis.call('XLEN', KEYS[p + 1]) end  -- also: a key of another type fails here
local held_max = tonumber(ARGV[2])
if held_max > 0 and held + #ARGV - values_at > held_max then return {'FULL'} end

local function last_sequence(key)
  if redis.call('EXISTS', key) == 0 then return 0 end
  local facts = redis.call('XINFO', 'STREAM', key)
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then return tonumber(string.match(facts[i + 1], '%-(%d+)$')) end
  end
end

local answer = {'OK'}
local at = values_at
for p = 1, partitions do
  local key = KEYS[p + 1]
  local floor, known, count = tonumber(ARGV[3 * p]), tonumber(ARGV[3 * p + 1]), tonumber(ARGV[3 * p + 2])
  local first, id = at + 1, ''
  if count > 0 and (floor > 0 or (known > 0 and redis.call('EXISTS', key) == 0)) then
    local last = last_sequence(key)
    if last < floor then
      -- The server came back without its tail: the hole is declared, and readers may step over it.
      id = redis.call('XADD', key, string.format('0-%.0f', floor + 1), 'v', ARGV[first], 'g', string.format('%.0f', last))
      first = first + 1
    elseif last < known then
      -- Somebody deleted the stream of a running system: its numbers go on, and readers find a hole not declared.
      id = redis.call('XADD', key, string.format('0-%.0f', known + 1), 'v', ARGV[first])
      first = first + 1
    end
  end
  for i = first, at + count do id = redis.call('XADD', key, '0-*', 'v', ARGV[i]) end
  at = at + count
  answer[p + 1] = id
end
return answer
