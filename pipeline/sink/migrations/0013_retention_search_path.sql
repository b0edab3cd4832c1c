-- The functions of retention run with the rights of the tables' owner. If another user may create objects in the schema
-- (before PostgreSQL 15, each user may in `public`), PostgreSQL found this user's operators and functions, if they fit
-- better than its own, and ran them with the owner's rights. Now it searches pg_catalog only, and each table has its
-- schema. The rest is unchanged.
DO $redo$
DECLARE
    body text;
    name text;
    home text;
BEGIN
    body := $functions$
CREATE OR REPLACE FUNCTION @home.delete_expired_events(rows_max integer, since timestamptz,
                                                       OUT deleted bigint, OUT reached timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '500ms' SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    expired_at CONSTANT timestamptz := now() - (SELECT event_days FROM @retention) * interval '1 day';
    root       CONSTANT regclass := @root;
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
        SELECT oid FROM pg_class WHERE oid = root AND relkind = 'r'
        UNION
        SELECT relid FROM pg_partition_tree(root) WHERE isleaf
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

CREATE OR REPLACE FUNCTION @home.delete_expired_dead_letters(rows_max integer,
                                                             OUT deleted bigint, OUT never_stored bigint)
LANGUAGE sql SECURITY DEFINER SET lock_timeout = '500ms' SET search_path = pg_catalog, pg_temp AS $body$
    WITH expired AS (
        SELECT id FROM @dead_letters
        WHERE id IN (SELECT id FROM @dead_letters ORDER BY id LIMIT rows_max)
          AND created_at < now() - (SELECT letter_days FROM @retention) * interval '1 day'
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM @dead_letters WHERE id IN (SELECT id FROM expired)
        RETURNING replayed_at
    )
    SELECT count(*), count(*) FILTER (WHERE replayed_at IS NULL) FROM gone
$body$;
    $functions$;
    FOREACH name IN ARRAY ARRAY['retention', 'log_events', 'dead_letters'] LOOP
        SELECT format('%I', nspname) INTO home
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = name::regclass;
        body := replace(body, '@' || name, home || '.' || name);
        IF name = 'log_events' THEN
            body := replace(body, '@root', quote_literal(home || '.' || name));
        END IF;
    END LOOP;
    SELECT format('%I', nspname) INTO home
    FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE pg_proc.oid = 'delete_expired_events(integer, timestamptz)'::regprocedure;
    EXECUTE replace(body, '@home', home);
END $redo$;
