-- Shared by the scripts of the mirror; joined in front of each by pipeline/store/connection.py. KEYS: 1 floors.

-- The life in which all that the mirror says holds: it begins with the server process or, after a flush, with the
-- first who asks. What an earlier life fenced or knew is no witness: it may have come from an older file. Floors stay,
-- since they only rise (lower_floor.lua aside, whose caller says it again where it was lost).
local function settle_life()
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local life = redis.call('HGET', KEYS[1], 'life')
  if life and string.sub(life, 1, #run_id) == run_id then return life end
  local server_time = redis.call('TIME')
  life = run_id .. ':' .. server_time[1] .. '.' .. server_time[2]
  redis.call('HDEL', KEYS[1], 'fence', 'incarnation', 'complete')
  redis.call('HSET', KEYS[1], 'life', life)
  return life
end

-- An incarnation as earlier versions call it, and as they keep it in the field `incarnation`. For them a Kafka topic has
-- one for ever, its id; what follows the colon is of its leaders (pipeline/log/kafka_topic.py). So workers of both
-- versions store from one topic side by side, while a restarted Redis is another incarnation for both.
local function earlier_name(incarnation)
  return string.match(incarnation, '^[^:]*')
end
