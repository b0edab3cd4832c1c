#!lua flags=no-writes
-- The reasons to pause, all at the same moment: half of the cost of the complete state.
-- KEYS: 1 pause, 2 pause:generation, 3 the prober's lease.

return {
  redis.call('HGETALL', KEYS[1]),
  redis.call('GET', KEYS[2]),
  lease_holds(KEYS[3]) and 1 or 0,
  server_time
}
