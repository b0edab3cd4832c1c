-- Holds the sink at a rate: whoever stores sleeps before its commit, one after the other, for as long as a sink of that
-- rate would have taken. Notes what was stored when, how much of it within the time that counts as goodput, and how old
-- the oldest event was.

CREATE TABLE bench_hold (events_per_second float8);  -- one row; NULL: not held

INSERT INTO bench_hold VALUES (NULL);

CREATE TABLE bench_stored (stored_at timestamptz, events integer, in_time integer, oldest_seconds float8);

CREATE FUNCTION bench_hold() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    held_at float8 := (SELECT events_per_second FROM bench_hold);
    events_added integer := (SELECT count(*) FROM added);
BEGIN
    IF held_at IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(5150515);  -- until the commit
        PERFORM pg_sleep(events_added / held_at);
    END IF;
    INSERT INTO bench_stored
    SELECT clock_timestamp(), events_added, count(*) FILTER (WHERE clock_timestamp() - received_at <= '10 seconds'),
        extract(epoch FROM max(clock_timestamp() - received_at))
    FROM added;
    RETURN NULL;
END
$$;

CREATE TRIGGER bench_hold AFTER INSERT ON log_events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION bench_hold();
