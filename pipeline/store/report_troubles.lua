#!lua flags=allow-oom
-- Store the problems of a process. KEYS: 1 troubles. ARGV: 1 process, 2 its problems as JSON or '', 3 milliseconds
-- after which all of it is forgotten.

if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
