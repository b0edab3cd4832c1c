-- Looking at a table by day costs the same with one day and with hundreds: its partitions are neither opened nor locked,
-- except those that are no days. And a day is dropped also while batches that take a second are stored all the time.
DO $make$
DECLARE
    name text;
    home text;
    body text := $functions$
-- As before. The bound has no columns, so PostgreSQL needs no relation for it, and locks none.
CREATE OR REPLACE FUNCTION @home.day_bounds(OUT leaf regclass, OUT begins timestamptz, OUT ends timestamptz)
RETURNS SETOF record
LANGUAGE sql STABLE SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET search_path = pg_catalog, pg_temp AS $body$
    SELECT inhrelid::regclass,
           CASE WHEN bound LIKE 'FOR VALUES FROM (MINVALUE)%' THEN timestamptz '-infinity'
                ELSE substring(bound FROM 'FROM \(''([^'']+)''\)')::timestamptz END,
           CASE WHEN bound LIKE '% TO (MAXVALUE)' THEN timestamptz 'infinity'
                ELSE substring(bound FROM 'TO \(''([^'']+)''\)')::timestamptz END
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid, pg_get_expr(relpartbound, 0) AS bound
    WHERE inhparent = @root::regclass
$body$;

-- As before, with other limits. A drain waits for the last lock only. That waits for the batches that are being stored,
-- and new ones wait for it: after two or three tries, batches of a second end within one of them. An event of a day
-- without a partition waits for the second lock too: so nobody who stores waits longer than 0.9 s.
CREATE OR REPLACE FUNCTION @home.drop_expired_day(OUT dropped text)
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '300ms' SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    expired_at CONSTANT timestamptz := now() - (SELECT event_days FROM @retention) * interval '24 hours';
    gone       regclass;
    rest       regclass;
BEGIN
    IF expired_at IS NULL OR NOT @home.is_by_day() THEN
        RETURN;
    END IF;
    SELECT leaf INTO gone FROM @home.day_bounds() WHERE ends <= expired_at ORDER BY ends LIMIT 1;
    IF gone IS NULL THEN
        RETURN;
    END IF;
    SELECT leaf INTO rest FROM @home.day_bounds() WHERE begins IS NULL;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', gone);
    IF rest IS NOT NULL THEN
        SET LOCAL lock_timeout = '100ms';
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', rest);
    END IF;
    SET LOCAL lock_timeout = '800ms';
    LOCK TABLE ONLY @log_events IN ACCESS EXCLUSIVE MODE;
    dropped := (SELECT relname FROM pg_class WHERE oid = gone);
    EXECUTE format('DROP TABLE %s', gone);
END $body$;

-- As before.
CREATE OR REPLACE FUNCTION @home.delete_expired_events(rows_max integer, since timestamptz,
                                                       OUT deleted bigint, OUT reached timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '500ms' SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    expired_at CONSTANT timestamptz := now() - (SELECT event_days FROM @retention) * interval '1 day';
    root       CONSTANT regclass := @root;
    by_day     CONSTANT boolean := @home.is_by_day();
    leaf       regclass;
    here       bigint;
    newest     timestamptz;
BEGIN
    deleted := 0;
    IF expired_at IS NULL THEN
        RETURN;
    END IF;
    -- A ctid is unique within one leaf only.
    FOR leaf IN
        SELECT oid FROM pg_class WHERE oid = root AND relkind = 'r'
        UNION
        SELECT relid FROM pg_partition_tree(CASE WHEN NOT by_day THEN root END) WHERE isleaf
        UNION
        SELECT bounds.leaf FROM @home.day_bounds() AS bounds
        WHERE by_day AND (begins IS NULL OR begins = '-infinity') AND @home.has_index_of_ages(bounds.leaf)
    LOOP
        EXECUTE format(
            'WITH gone AS ('
            '    DELETE FROM %1$s WHERE ctid = ANY (ARRAY('
            '        SELECT ctid FROM %1$s WHERE stored_at < $1 AND stored_at >= $2 ORDER BY stored_at LIMIT $3))'
            '    RETURNING stored_at'
            ') SELECT count(*), max(stored_at) FROM gone', leaf)
        INTO here, newest USING expired_at, since, rows_max - deleted;
        deleted := deleted + here;
        reached := CASE WHEN leaf = root THEN coalesce(newest, since) ELSE since END;
        EXIT WHEN deleted >= rows_max;
    END LOOP;
END $body$;

-- As before, from the catalog. `unnoted` is always NULL: see unnoted_id.
CREATE OR REPLACE FUNCTION @home.day_facts(OUT by_day boolean, OUT has_today boolean, OUT days_ahead integer,
                                           OUT has_default_rows boolean, OUT oldest timestamptz, OUT unnoted text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET timezone = 'UTC' SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    today CONSTANT timestamptz := date_trunc('day', now());
    rest  regclass;
BEGIN
    by_day := @home.is_by_day();
    IF NOT by_day THEN
        RETURN;
    END IF;
    SELECT coalesce(bool_or(begins <= now() AND ends > now()), false),
           (
               SELECT count(DISTINCT number)
               FROM generate_series(1, 7) AS number, unnest(array_agg(begins), array_agg(ends)) AS place (begins, ends)
               WHERE place.begins <= today + number * interval '24 hours'
                 AND place.ends > today + number * interval '24 hours'
           ),
           max(leaf::oid) FILTER (WHERE begins IS NULL)
    INTO has_today, days_ahead, rest FROM @home.day_bounds();
    has_default_rows := false;
    IF rest IS NOT NULL THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', rest) INTO has_default_rows;
    END IF;
    oldest := @home.oldest_stored(false);
END $body$;

-- An event of one partition that is stored, and its id is not noted: the highest and the lowest one are looked for. NULL:
-- both are, or it is no partition (any more).
CREATE FUNCTION @home.unnoted_id(place oid) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    found text;
BEGIN
    IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid = place AND inhparent = @root::regclass) THEN
        EXECUTE format(
            'SELECT event_id'
            ' FROM (SELECT max(event_id) FROM %1$s UNION ALL SELECT min(event_id) FROM %1$s) AS found (event_id)'
            ' WHERE event_id IS NOT NULL'
            ' AND NOT EXISTS (SELECT FROM %2$s.event_ids AS noted WHERE noted.event_id = found.event_id) LIMIT 1',
            place::regclass, @schema)
        INTO found;
    END IF;
    RETURN found;
END $body$;

REVOKE EXECUTE ON FUNCTION @home.unnoted_id(oid) FROM PUBLIC;
    $functions$;
BEGIN
    FOREACH name IN ARRAY ARRAY['retention', 'log_events'] LOOP
        SELECT format('%I', nspname) INTO home
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = name::regclass;
        body := replace(body, '@' || name, home || '.' || name);
    END LOOP;
    -- `home` is now the schema of log_events.
    body := replace(body, '@root', quote_literal(home || '.log_events'));
    body := replace(body, '@schema', quote_literal(home));
    EXECUTE replace(body, '@home', home);
END $make$;
