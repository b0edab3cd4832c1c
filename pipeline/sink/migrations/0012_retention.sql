-- How long events and dead letters are kept. An event's age is counted from `stored_at`, PostgreSQL's own time of
-- storing it: so no other clock decides when it expires. The column is added without rewriting the table. Events that
-- are already there count as stored now. A user's own column of this name is kept.
ALTER TABLE log_events ADD COLUMN IF NOT EXISTS stored_at timestamptz NOT NULL DEFAULT now();

-- Only the owner of the tables writes this. Sluice's user may not delete rows: it calls the functions below, which
-- delete what is older than this.
CREATE TABLE retention (
    id          integer PRIMARY KEY CHECK (id = 1),
    event_days  integer CHECK (event_days > 0),  -- NULL: events are kept for ever
    letter_days integer CHECK (letter_days > 0)  -- NULL: dead letters are kept for ever
);
INSERT INTO retention (id) VALUES (1);

-- Deletes up to `rows_max` of the oldest expired events that were stored at `since` or later. Returns their number, and
-- the time at which the next call may begin: so it need not pass by rows that are already deleted, and not yet vacuumed.
CREATE FUNCTION delete_expired_events(rows_max integer, since timestamptz, OUT deleted bigint, OUT reached timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '500ms' AS $body$
DECLARE
    expired_at CONSTANT timestamptz := now() - (SELECT event_days FROM retention) * interval '1 day';
    leaf       regclass;
    here       bigint;
    newest     timestamptz;
BEGIN
    deleted := 0;
    IF expired_at IS NULL THEN
        RETURN;
    END IF;
    -- A table that its user partitioned has several leaves. A ctid is unique within one of them only.
    FOR leaf IN
        SELECT oid FROM pg_class WHERE oid = 'log_events'::regclass AND relkind = 'r'
        UNION
        SELECT relid FROM pg_partition_tree('log_events') WHERE isleaf
    LOOP
        EXECUTE format(
            'WITH gone AS ('
            '    DELETE FROM %1$s WHERE ctid = ANY (ARRAY('
            '        SELECT ctid FROM %1$s WHERE stored_at < $1 AND stored_at >= $2 ORDER BY stored_at LIMIT $3))'
            '    RETURNING stored_at'
            ') SELECT count(*), max(stored_at) FROM gone', leaf)
        INTO here, newest USING expired_at, since, rows_max - deleted;
        deleted := deleted + here;
        reached := CASE WHEN leaf = 'log_events'::regclass THEN coalesce(newest, since) ELSE since END;
        EXIT WHEN deleted >= rows_max;
    END LOOP;
END $body$;

-- Deletes the expired ones among the `rows_max` oldest dead letters, except those that a replay holds. Returns how many,
-- and how many of them no replay had stored.
CREATE FUNCTION delete_expired_dead_letters(rows_max integer, OUT deleted bigint, OUT never_stored bigint)
LANGUAGE sql SECURITY DEFINER SET lock_timeout = '500ms' AS $body$
    WITH expired AS (
        SELECT id FROM dead_letters
        WHERE id IN (SELECT id FROM dead_letters ORDER BY id LIMIT rows_max)
          AND created_at < now() - (SELECT letter_days FROM retention) * interval '1 day'
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM dead_letters WHERE id IN (SELECT id FROM expired)
        RETURNING replayed_at
    )
    SELECT count(*), count(*) FILTER (WHERE replayed_at IS NULL) FROM gone
$body$;

-- The functions use the tables of this schema, whatever the caller's search_path and temporary tables are.
DO $pin$
BEGIN
    EXECUTE format('ALTER FUNCTION delete_expired_events(integer, timestamptz) SET search_path = %I, pg_temp',
                   current_schema());
    EXECUTE format('ALTER FUNCTION delete_expired_dead_letters(integer) SET search_path = %I, pg_temp',
                   current_schema());
END $pin$;
REVOKE EXECUTE ON FUNCTION delete_expired_events(integer, timestamptz) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION delete_expired_dead_letters(integer) FROM PUBLIC;
