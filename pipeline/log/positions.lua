#!lua flags=no-writes
-- Begin, end and commit of every partition, at one moment.
--
-- KEYS: 1 log id, 2 committed offsets, 3… the stream of each partition, from partition 0. ARGV: 1 expected log id.
-- Returns nothing where this is another log; otherwise begin, end and commit (-1: none) of each partition in turn.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end

local answer = {}
for p = 0, #KEYS - 3 do
  local key = KEYS[p + 3]
  local first, last = nil, 0
  if redis.call('EXISTS', key) == 1 then
    local facts = redis.call('XINFO', 'STREAM', key)
    for i = 1, #facts, 2 do
      if facts[i] == 'last-generated-id' then last = tonumber(string.match(facts[i + 1], '%-(%d+)$')) end
      if facts[i] == 'first-entry' and facts[i + 1] then first = tonumber(string.match(facts[i + 1][1], '%-(%d+)$')) end
    end
  end
  answer[#answer + 1] = first and first - 1 or last
  answer[#answer + 1] = last
  answer[#answer + 1] = tonumber(redis.call('HGET', KEYS[2], tostring(p)) or '-1')
end
return answer
