#!lua flags=allow-oom
-- Return to the bands of the settings. ARGV from 3: why. Returns 1 if other bands were set.

if redis.call('DEL', KEYS[6]) == 0 then return 0 end
record('bands_set', ARGV[3], cjson.encode({ bands = 'settings' }))
return 1
