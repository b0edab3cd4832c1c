#!lua flags=allow-oom
-- Set bands that apply from the next tick on. ARGV from 3: rate_max, rate_min, lag_degraded, lag_critical, why, since.

put_bands(ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[2], ARGV[7], ARGV[8])
record('bands_set', ARGV[7], cjson.encode({
  rate_max = ARGV[3], rate_min = ARGV[4], lag_degraded = ARGV[5], lag_critical = ARGV[6]
}))
return 1
