#!lua flags=no-writes
-- Begin, end, commit and next offset of every partition, all at the same moment.
--
-- KEYS: 1 log id, 2 committed offsets, 3 ends, 4… the stream of each partition, from partition 0.
-- ARGV: 1 expected log id, 2 incarnation.
-- If the stored end is above the stream's, somebody deleted or replaced the stream: its records were acknowledged, and
-- the next append goes on after them. Then that is the end and, in a stream without entries, also the begin.
-- Returns nothing if this is another log. Otherwise returns for each partition: begin, end, commit (-1: none), next
-- offset (-1: unknown, because no process has fenced this incarnation), and how many acknowledged records were lost when
-- this incarnation began. Last, when the loss was found (0: there is none), and the seconds since, by this server's
-- clock: it may have been stepped, so the reader decides how long a loss is shown.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end

local is_fenced = redis.call('HGET', KEYS[3], 'incarnation') == ARGV[2]

local lost_at = tonumber(redis.call('HGET', KEYS[3], 'lost_at') or '') or 0
local has_lost = is_fenced and redis.call('HGET', KEYS[3], 'begun') == ARGV[2] and lost_at > 0

local answer = {}
for p = 0, #KEYS - 4 do
  local key = KEYS[p + 4]
  local first, last = nil, 0
  if redis.call('EXISTS', key) == 1 then
    local facts = redis.call('XINFO', 'STREAM', key)
    for i = 1, #facts, 2 do
      if facts[i] == 'last-generated-id' then last = tonumber(string.match(facts[i + 1], '%-(%d+)$')) end
      if facts[i] == 'first-entry' and facts[i + 1] then first = tonumber(string.match(facts[i + 1][1], '%-(%d+)$')) end
    end
  end
  local noted = redis.call('HMGET', KEYS[3], 'e' .. p, 'f' .. p)
  last = math.max(last, tonumber(noted[1] or 0))
  answer[#answer + 1] = first and first - 1 or last
  answer[#answer + 1] = last
  answer[#answer + 1] = tonumber(redis.call('HGET', KEYS[2], tostring(p)) or '-1')
  answer[#answer + 1] = is_fenced and math.max(last, tonumber(noted[2] or 0)) or -1
  answer[#answer + 1] = has_lost and tonumber(redis.call('HGET', KEYS[3], 'l' .. p) or 0) or 0
end
answer[#answer + 1] = has_lost and lost_at or 0
answer[#answer + 1] = tonumber(redis.call('TIME')[1]) - lost_at
return answer
