#!lua flags=allow-oom
-- Write something that changes nothing, so that the caller can wait until the replicas have it. Also runs at maxmemory.
--
-- KEYS: 1 log id, 2 ends. ARGV: 1 expected log id, 2 the incarnation that the caller has fenced.
-- Returns 'OTHER' (this is another log, or its content was restored or replaced after the fence) or 'OK'.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'OTHER' end
if redis.call('HGET', KEYS[2], 'incarnation') ~= ARGV[2] then return 'OTHER' end
redis.call('HSET', KEYS[2], 'incarnation', ARGV[2])
return 'OK'
