-- Shared by the scripts of the mirror; pipeline/control_store/connection.py inserts it at the start of each. KEYS: 1 lowest offsets.

-- The life of the mirror: all its content is valid within one life only. A life begins with the server process or,
-- after a flush, with the first read. The fence and completeness of an earlier life prove nothing: they may come from
-- an older file. Lowest offsets stay, because they only rise (except in lower_lowest_offset.lua, whose caller repeats its call if it
-- was lost).
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

-- The name of an incarnation in earlier versions, which store it in the field `incarnation`. In those versions a Kafka
-- topic has one incarnation, its id. The part after the colon is about its leaders (pipeline/log/kafka_topic.py). So
-- workers of both versions can store from one topic side by side, while a restarted Redis is another incarnation for
-- both.
local function earlier_name(incarnation)
  return string.match(incarnation, '^[^:]*')
end
