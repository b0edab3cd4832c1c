#!lua flags=allow-oom
-- Back to the bands of the settings. ARGV from 3: why. Returns 1 when others held.

if redis.call('DEL', KEYS[6]) == 0 then return 0 end
record('bands_set', ARGV[3], cjson.encode({ bands = 'settings' }))
return 1
