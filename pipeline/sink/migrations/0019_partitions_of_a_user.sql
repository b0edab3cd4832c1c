-- The functions for a table by day find no days in a log_events that its user has partitioned otherwise, such as on
-- event_id: its bounds are no times, and reading them as times was an error.
DO $make$
DECLARE
    name text;
    home text;
    body text := $functions$
-- As before; nothing of a table that is not by day.
CREATE OR REPLACE FUNCTION @home.day_bounds(OUT leaf regclass, OUT begins timestamptz, OUT ends timestamptz)
RETURNS SETOF record
LANGUAGE sql STABLE SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET search_path = pg_catalog, pg_temp AS $body$
    SELECT inhrelid::regclass,
           CASE WHEN bound LIKE 'FOR VALUES FROM (MINVALUE)%' THEN timestamptz '-infinity'
                ELSE substring(bound FROM 'FROM \(''([^'']+)''\)')::timestamptz END,
           CASE WHEN bound LIKE '% TO (MAXVALUE)' THEN timestamptz 'infinity'
                ELSE substring(bound FROM 'TO \(''([^'']+)''\)')::timestamptz END
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid, pg_get_expr(relpartbound, 0) AS bound
    WHERE inhparent = @root::regclass AND @home.is_by_day()
$body$;

-- As before, and it says so if it has nothing to do. A tick of retention calls it with a table by day only.
CREATE OR REPLACE FUNCTION @home.delete_expired_ids(rows_max integer, since timestamptz,
                                                    OUT deleted bigint, OUT reached timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '500ms' SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    expired_at timestamptz;
BEGIN
    deleted := 0;
    IF NOT @home.is_by_day() THEN
        RAISE NOTICE 'log_events is not partitioned by day, so event_ids is not in use: nothing is deleted'
            USING HINT = 'EVENTS_BY_DAY=yes python -m pipeline migrate partitions it by day.';
        RETURN;
    END IF;
    SELECT least(now() - id_days * interval '1 day', @home.oldest_stored(true)) INTO expired_at
    FROM @retention WHERE id_days IS NOT NULL;
    IF expired_at IS NULL THEN
        RETURN;
    END IF;
    WITH gone AS (
        DELETE FROM @home.event_ids WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM @home.event_ids WHERE stored_at < expired_at AND stored_at >= since
            ORDER BY stored_at LIMIT rows_max))
        RETURNING stored_at
    ) SELECT count(*), coalesce(max(stored_at), since) INTO deleted, reached FROM gone;
END $body$;
    $functions$;
BEGIN
    FOREACH name IN ARRAY ARRAY['retention', 'log_events'] LOOP
        SELECT format('%I', nspname) INTO home
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = name::regclass;
        body := replace(body, '@' || name, home || '.' || name);
    END LOOP;
    -- `home` is now the schema of log_events.
    body := replace(body, '@root', quote_literal(home || '.log_events'));
    EXECUTE replace(body, '@home', home);
END $make$;
