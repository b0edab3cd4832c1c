-- A drop waits for the lock on its day for a third of the time. A reader of all days waits for the three locks of a drop,
-- one after the other: 0.1, 0.1 and 0.8 s.
DO $make$
DECLARE
    home text;
BEGIN
    SELECT format('%I', nspname) INTO home
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = 'log_events'::regclass;
    EXECUTE format('ALTER FUNCTION %s.drop_expired_day() SET lock_timeout = ''100ms''', home);
END $make$;
