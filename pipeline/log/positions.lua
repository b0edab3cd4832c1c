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

local count = #KEYS - 3
local streams, end_fields, commit_fields = {}, { 'incarnation', 'lost_at', 'begun' }, {}
for p = 0, count - 1 do
  streams[#streams + 1] = KEYS[p + 4]
  commit_fields[#commit_fields + 1] = tostring(p)
  for _, kind in ipairs({ 'e', 'f', 'l' }) do end_fields[#end_fields + 1] = kind .. p end
end
local noted = redis.call('HMGET', KEYS[3], unpack(end_fields))
local committed = redis.call('HMGET', KEYS[2], unpack(commit_fields))
local existing = redis.call('EXISTS', unpack(streams))

local is_fenced = noted[1] == ARGV[2]
local lost_at = tonumber(noted[2] or '') or 0
local has_lost = is_fenced and noted[3] == ARGV[2] and lost_at > 0

local answer = {}
for p = 0, count - 1 do
  local key = KEYS[p + 4]
  local first, last = nil, 0
  if existing == count or (existing > 0 and redis.call('EXISTS', key) == 1) then
    local facts = redis.call('XINFO', 'STREAM', key)
    for i = 1, #facts, 2 do
      if facts[i] == 'last-generated-id' then last = tonumber(string.match(facts[i + 1], '%-(%d+)$')) end
      if facts[i] == 'first-entry' and facts[i + 1] then first = tonumber(string.match(facts[i + 1][1], '%-(%d+)$')) end
    end
  end
  local first_of = 4 + 3 * p  -- in `noted`: the fields of this partition
  last = math.max(last, tonumber(noted[first_of] or 0))
  answer[#answer + 1] = first and first - 1 or last
  answer[#answer + 1] = last
  answer[#answer + 1] = tonumber(committed[p + 1] or '-1')
  answer[#answer + 1] = is_fenced and math.max(last, tonumber(noted[first_of + 1] or 0)) or -1
  answer[#answer + 1] = has_lost and tonumber(noted[first_of + 2] or 0) or 0
end
answer[#answer + 1] = has_lost and lost_at or 0
answer[#answer + 1] = tonumber(redis.call('TIME')[1]) - lost_at
return answer
