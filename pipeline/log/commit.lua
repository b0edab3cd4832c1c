#!lua flags=allow-oom
-- Store the committed offset of a partition, and drop the entries below it. Also runs at maxmemory: it frees memory.
--
-- KEYS: 1 log id, 2 stream, 3 committed offsets. ARGV: 1 expected log id, 2 partition, 3 offset, 4 '1' to trim.
-- Returns 'OTHER' (this is another log), 'BEYOND' (the stream ends before that offset), or 'OK'.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'OTHER' end

local offset = tonumber(ARGV[3])

local last = 0
if redis.call('EXISTS', KEYS[2]) == 1 then
  local facts = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then last = tonumber(string.match(facts[i + 1], '%-(%d+)$')) end
  end
end
-- The stream has lost its tail. Nothing is stored or dropped until an append has raised it.
if offset > last then return 'BEYOND' end

redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
-- The entry with offset k has the id 0-(k+1): entries below `offset` are those with a sequence number up to it.
if ARGV[4] == '1' then redis.call('XTRIM', KEYS[2], 'MINID', '=', string.format('0-%.0f', offset + 1)) end
return 'OK'
