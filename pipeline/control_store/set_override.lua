#!lua flags=allow-oom
-- Set a rate until a time. ARGV from 3: rate, until, why. Returns its start time.

settle_override()
local rate, ends, why = ARGV[3], ARGV[4], ARGV[5]
put_override(rate, ends, ARGV[2], why, exact(now))
record('override_set', why, cjson.encode({ rate = rate, ['until'] = ends }))
settle_override()
settle_rate(why)
return exact(now)
