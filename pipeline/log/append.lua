#!lua
-- Append a group of entries to the streams of all partitions: all of them or, if the script refuses, none.
--
-- The first line has no `allow-oom`: at maxmemory Redis refuses the whole script before its first command.
--
-- KEYS: 1 log id, 2 ends, 3… the stream of each partition, from partition 0.
-- ARGV: 1 expected log id, 2 the incarnation that the caller has fenced, 3 most entries in all streams together (0: no
--       limit), then the number of entries for each partition, then the entries' values, partition by partition.
-- Returns 'OTHER' (this is another log, or its content was restored or replaced after the fence), 'FULL', or for each
-- partition that was appended to the field of its end in KEYS[2], and its end.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'OTHER' end
if redis.call('HGET', KEYS[2], 'incarnation') ~= ARGV[2] then return 'OTHER' end

local partitions = #KEYS - 2
local values_at = 3 + partitions
local held = 0
for p = 1, partitions do held = held + redis.call('XLEN', KEYS[p + 2]) end  -- fails for a key of another type
local held_max = tonumber(ARGV[3])
if held_max > 0 and held + #ARGV - values_at > held_max then return 'FULL' end

local function last_sequence(key)
  if redis.call('EXISTS', key) == 0 then return 0 end
  local facts = redis.call('XINFO', 'STREAM', key)
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then return tonumber(string.match(facts[i + 1], '%-(%d+)$')) end
  end
end

local function text(number)
  return string.format('%.0f', number)
end

-- The first entry of a partition continues from a given end. Offsets below the lowest offset must not be reused by a log
-- without its tail: that hole is declared, and readers may skip it.
local function add_first(key, last, lowest, value)
  if last < lowest then return redis.pcall('XADD', key, '0-' .. text(lowest + 1), 'v', value, 'g', text(last)) end
  return redis.pcall('XADD', key, '0-' .. text(last + 1), 'v', value)
end

local noted = {}
local at = values_at
for p = 1, partitions do
  local count = tonumber(ARGV[3 + p])
  if count > 0 then
    local key, field = KEYS[p + 2], 'e' .. p - 1
    local lowest = tonumber(redis.call('HGET', KEYS[2], 'f' .. p - 1) or 0)
    -- The end is stored beside the stream. So the offsets continue even if the stream was deleted, whichever process
    -- appends next. Readers then find a hole that is not declared.
    local last = tonumber(redis.call('HGET', KEYS[2], field) or '') or last_sequence(key)
    local added = add_first(key, last, lowest, ARGV[at + 1])
    if type(added) == 'table' and added.err then  -- the stream is ahead: a writer of an older version stores no end
      last = last_sequence(key)
      added = add_first(key, last, lowest, ARGV[at + 1])
      if type(added) == 'table' and added.err then return added end
    end
    for i = at + 2, at + count do redis.call('XADD', key, '0-*', 'v', ARGV[i]) end
    noted[#noted + 1] = field
    noted[#noted + 1] = text(math.max(last, lowest) + count)
    at = at + count
  end
end
redis.call('HSET', KEYS[2], unpack(noted))
return noted
