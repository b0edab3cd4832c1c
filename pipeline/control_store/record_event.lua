#!lua flags=allow-oom
-- Add a control event. ARGV from 3: kind, why, data as JSON.

record(ARGV[3], ARGV[4], ARGV[5])
return 1
