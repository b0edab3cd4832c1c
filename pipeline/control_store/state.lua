#!lua flags=no-writes
-- The complete state for a process, all at the same moment.
-- KEYS: 1 rate, 2 pause, 3 pause:generation, 4 the prober's lease, 5 override, 6 bands, 7 bucket, 8 accounts,
-- 9 keys; it may be left out: an operator's user has no right to read it.

return {
  redis.call('HGETALL', KEYS[1]),
  redis.call('HGETALL', KEYS[2]),
  redis.call('GET', KEYS[3]),
  lease_holds(KEYS[4]) and 1 or 0,
  server_time,
  redis.call('HGETALL', KEYS[5]),
  redis.call('HGETALL', KEYS[6]),
  redis.call('HGET', KEYS[7], 'ran_dry'),
  redis.call('HGETALL', KEYS[8]),
  KEYS[9] and redis.call('HGET', KEYS[9], 'version')
}
