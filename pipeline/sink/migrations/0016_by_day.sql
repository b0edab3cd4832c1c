-- For log_events partitioned by day, which `EVENTS_BY_DAY=yes python -m pipeline migrate` makes (docs/retention.md).
-- Without it, the table stays as it is and nothing of this is used. PostgreSQL has no unique index on event_id alone
-- over partitions by time. So a table keeps the ids, and a trigger writes it for each writer of log_events, of whatever
-- version: COPY and INSERT fail with 23505 if an id is there.

-- Ids are kept longer than events, if DEDUP_DAYS says so. They never go before their events.
ALTER TABLE retention
    ADD COLUMN id_days integer CHECK (id_days > 0),  -- NULL: ids are kept for ever
    ADD CONSTRAINT retention_ids_outlive_events CHECK (id_days IS NULL OR (event_days IS NOT NULL AND id_days >= event_days));

DO $make$
DECLARE
    name text;
    home text;
    body text := $functions$
CREATE TABLE @home.event_ids (
    event_id  text COLLATE "C" NOT NULL PRIMARY KEY,
    stored_at timestamptz  -- that of the event
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02);

-- Notes the ids of new events. AFTER INSERT FOR EACH STATEMENT, with the new rows as new_events.
CREATE FUNCTION @home.note_event_ids() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    INSERT INTO @home.event_ids (event_id, stored_at) SELECT event_id, stored_at FROM new_events;
    RETURN NULL;
END $body$;

-- The same while the table changes over, and its own index still keeps ids unique: a step of the change may have noted
-- some of them already. An event that was deleted and is stored again has a new time.
CREATE FUNCTION @home.copy_event_ids() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    INSERT INTO @home.event_ids (event_id, stored_at) SELECT event_id, stored_at FROM new_events
    ON CONFLICT (event_id) DO UPDATE SET stored_at = EXCLUDED.stored_at;
    RETURN NULL;
END $body$;

-- If somebody changes the id or the time of a stored event, the noted ones follow.
CREATE FUNCTION @home.follow_event_ids() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    IF EXISTS (SELECT event_id, stored_at FROM new_events EXCEPT SELECT event_id, stored_at FROM old_events) THEN
        DELETE FROM @home.event_ids AS noted USING old_events WHERE noted.event_id = old_events.event_id;
        INSERT INTO @home.event_ids (event_id, stored_at) SELECT event_id, stored_at FROM new_events;
    END IF;
    RETURN NULL;
END $body$;

-- A worker of an older version may store an event without a time. While the table changes over, it gets one.
CREATE FUNCTION @home.fill_stored_at() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    NEW.stored_at := now();
    RETURN NEW;
END $body$;

CREATE FUNCTION @home.is_by_day() RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT EXISTS (
        SELECT FROM pg_partitioned_table JOIN pg_attribute ON attrelid = partrelid AND attnum = partattrs[0]
        WHERE partrelid = @root::regclass AND partstrat = 'r' AND partnatts = 1 AND attname = 'stored_at'
    )
$body$;

-- The partitions of log_events and their bounds; both NULL: the default partition. log_events_before begins at -infinity.
CREATE FUNCTION @home.day_bounds(OUT leaf regclass, OUT begins timestamptz, OUT ends timestamptz) RETURNS SETOF record
LANGUAGE sql STABLE SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET search_path = pg_catalog, pg_temp AS $body$
    SELECT inhrelid::regclass,
           CASE WHEN bound LIKE 'FOR VALUES FROM (MINVALUE)%' THEN timestamptz '-infinity'
                ELSE substring(bound FROM 'FROM \(''([^'']+)''\)')::timestamptz END,
           CASE WHEN bound LIKE '% TO (MAXVALUE)' THEN timestamptz 'infinity'
                ELSE substring(bound FROM 'TO \(''([^'']+)''\)')::timestamptz END
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid, pg_get_expr(relpartbound, inhrelid) AS bound
    WHERE inhparent = @root::regclass
$body$;

-- Makes the partitions of today and of the next seven days, as far as they are missing. It does not hold up a drain: the
-- locks that it takes are those of the new partition, of the default one, and SHARE UPDATE EXCLUSIVE. A day of which the
-- default partition already has events stays there, and so does one whose name another table has. PostgreSQL reads the
-- default partition for each new one, and who stores in it waits meanwhile. So if that is large, and today's events go
-- there, only such days are made as a valid check of it excludes (`migrate` adds one).
CREATE FUNCTION @home.make_days(OUT made integer)
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '500ms' SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    days    CONSTANT timestamptz[] := ARRAY(
        SELECT date_trunc('day', now()) + number * interval '24 hours' FROM generate_series(0, 7) AS number
    );
    options text;
    place   text;
    day     timestamptz;
    leaf    text;
    bound   record;
    rest    regclass;
    begins_at timestamptz := '-infinity';
BEGIN
    made := 0;
    -- A change that was begun and not finished: its bound would soon refuse new events.
    FOR bound IN
        SELECT conrelid::regclass AS place, conname FROM pg_constraint
        WHERE conname IN ('log_events_before_end', 'log_events_default_end')
          AND (conrelid = @root::regclass OR conrelid IN (SELECT day_bounds.leaf FROM @home.day_bounds()))
          AND substring(pg_get_constraintdef(oid) FROM '''([^'']+)''')::timestamptz < now() + interval '24 hours'
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', bound.place, bound.conname);
    END LOOP;
    IF NOT @home.is_by_day() OR NOT EXISTS (
        SELECT FROM unnest(days) AS wanted (day)
        WHERE NOT EXISTS (SELECT FROM @home.day_bounds() WHERE begins <= wanted.day AND ends > wanted.day)
    ) THEN
        RETURN;
    END IF;
    SELECT bounds.leaf INTO rest FROM @home.day_bounds() AS bounds WHERE bounds.begins IS NULL;
    IF pg_relation_size(rest) > 4 << 20
        AND NOT EXISTS (SELECT FROM @home.day_bounds() WHERE begins <= now() AND ends > now()) THEN
        begins_at := coalesce((
            SELECT substring(pg_get_constraintdef(oid) FROM '''([^'']+)''')::timestamptz FROM pg_constraint
            WHERE conrelid = rest AND conname = 'log_events_default_end' AND convalidated
        ), 'infinity');
    END IF;
    LOCK TABLE ONLY @log_events IN SHARE UPDATE EXCLUSIVE MODE;  -- one at a time, and nobody changes its columns
    -- As the owner set them for the default partition.
    SELECT 'WITH (' || array_to_string(reloptions, ', ') || ')', 'TABLESPACE ' || quote_ident(spcname)
    INTO options, place
    FROM @home.day_bounds() AS bounds JOIN pg_class ON pg_class.oid = bounds.leaf
    LEFT JOIN pg_tablespace ON pg_tablespace.oid = reltablespace WHERE bounds.begins IS NULL;
    FOREACH day IN ARRAY days LOOP
        CONTINUE WHEN day < begins_at OR EXISTS (
            SELECT FROM @home.day_bounds() WHERE ends > day AND begins < day + interval '24 hours'
        );
        leaf := 'log_events_' || to_char(day, 'YYYYMMDD');
        BEGIN
            EXECUTE format('CREATE TABLE %s.%I (LIKE %s INCLUDING ALL EXCLUDING IDENTITY) %s %s',
                           @schema, leaf, @root, coalesce(options, ''), coalesce(place, ''));
            EXECUTE format('CREATE UNIQUE INDEX %I ON %s.%I (event_id)', leaf || '_event_id', @schema, leaf);
            EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s.%I FOR VALUES FROM (%L) TO (%L)',
                           @root, @schema, leaf, day, day + interval '24 hours');
            made := made + 1;
        EXCEPTION WHEN check_violation OR duplicate_table THEN
            NULL;
        END;
    END LOOP;
END $body$;

-- Drops the oldest partition if all of it is expired, and returns its name. Three locks of at most 300 ms: a drain waits
-- for the last one only, and nobody waits longer than for all three.
CREATE FUNCTION @home.drop_expired_day(OUT dropped text)
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
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', rest);
    END IF;
    LOCK TABLE ONLY @log_events IN ACCESS EXCLUSIVE MODE;
    dropped := (SELECT relname FROM pg_class WHERE oid = gone);
    EXECUTE format('DROP TABLE %s', gone);
END $body$;

-- As before, with a table by day: there it deletes from the partitions that are no days (the default one, and the table
-- that was there before the days), if they have an index on stored_at.
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
        SELECT relid FROM pg_partition_tree(root) WHERE isleaf AND NOT by_day
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

CREATE FUNCTION @home.has_index_of_ages(leaf regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
        JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
        WHERE indrelid = leaf AND attname = 'stored_at' AND amname = 'btree' AND indisvalid AND indpred IS NULL
    )
$body$;

-- The age of what is stored: no event is older. NULL: there is none. With days that is where the oldest one ends: so long
-- as it is there, all of it is. Of a partition that is no day and can't be searched by age: where that ends.
CREATE FUNCTION @home.oldest_stored(is_lowest boolean) RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    place  record;
    here   timestamptz;
    oldest timestamptz;
BEGIN
    FOR place IN SELECT * FROM @home.day_bounds() LOOP
        IF place.begins > '-infinity' THEN
            here := CASE WHEN is_lowest THEN place.begins ELSE place.ends END;
        ELSIF @home.has_index_of_ages(place.leaf) THEN
            EXECUTE format('SELECT min(stored_at) FROM %s', place.leaf) INTO here;
        ELSE
            here := CASE WHEN is_lowest THEN '-infinity' ELSE place.ends END;
        END IF;
        oldest := least(oldest, here);
    END LOOP;
    RETURN oldest;
END $body$;

-- Deletes up to `rows_max` of the oldest expired ids. Those of events that are still stored are not expired.
CREATE FUNCTION @home.delete_expired_ids(rows_max integer, since timestamptz,
                                         OUT deleted bigint, OUT reached timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '500ms' SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    expired_at CONSTANT timestamptz := least(
        now() - (SELECT id_days FROM @retention) * interval '1 day', @home.oldest_stored(true)
    );
BEGIN
    deleted := 0;
    IF (SELECT id_days FROM @retention) IS NULL OR NOT @home.is_by_day() THEN
        RETURN;
    END IF;
    WITH gone AS (
        DELETE FROM @home.event_ids WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM @home.event_ids WHERE stored_at < expired_at AND stored_at >= since
            ORDER BY stored_at LIMIT rows_max))
        RETURNING stored_at
    ) SELECT count(*), coalesce(max(stored_at), since) INTO deleted, reached FROM gone;
END $body$;

-- What a tick of retention looks at. NULLs with a table that is not by day. `unnoted`: an event that is stored, and its
-- id is not noted: the highest and the lowest one of each partition are looked for.
CREATE FUNCTION @home.day_facts(OUT by_day boolean, OUT has_today boolean, OUT days_ahead integer,
                                OUT has_default_rows boolean, OUT oldest timestamptz, OUT unnoted text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET timezone = 'UTC' SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    today CONSTANT timestamptz := date_trunc('day', now());
    place record;
BEGIN
    by_day := @home.is_by_day();
    IF NOT by_day THEN
        RETURN;
    END IF;
    has_today := EXISTS (SELECT FROM @home.day_bounds() WHERE begins <= now() AND ends > now());
    days_ahead := (
        SELECT count(*) FROM generate_series(1, 7) AS number
        WHERE EXISTS (
            SELECT FROM @home.day_bounds()
            WHERE begins <= today + number * interval '24 hours' AND ends > today + number * interval '24 hours'
        )
    );
    has_default_rows := false;
    FOR place IN SELECT * FROM @home.day_bounds() ORDER BY begins DESC NULLS FIRST LOOP
        IF place.begins IS NULL THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM %s)', place.leaf) INTO has_default_rows;
        END IF;
        CONTINUE WHEN place.begins > now() OR unnoted IS NOT NULL;
        EXECUTE format(
            'SELECT event_id'
            ' FROM (SELECT max(event_id) FROM %1$s UNION ALL SELECT min(event_id) FROM %1$s) AS found (event_id)'
            ' WHERE event_id IS NOT NULL'
            ' AND NOT EXISTS (SELECT FROM %2$s.event_ids AS noted WHERE noted.event_id = found.event_id) LIMIT 1',
            place.leaf, @schema)
        INTO unnoted;
    END LOOP;
    oldest := @home.oldest_stored(false);
END $body$;

REVOKE EXECUTE ON FUNCTION @home.note_event_ids(), @home.copy_event_ids(), @home.follow_event_ids(),
    @home.fill_stored_at(), @home.make_days(), @home.drop_expired_day(),
    @home.has_index_of_ages(regclass), @home.oldest_stored(boolean),
    @home.delete_expired_ids(integer, timestamptz), @home.day_facts() FROM PUBLIC;
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
