-- Puts a table by day in the place of log_events, in the caller's transaction, which holds ACCESS EXCLUSIVE on it. The old
-- table becomes the partition log_events_before; if it is empty, it is dropped. It has a valid constraint
-- log_events_before_end, so that PostgreSQL need not read it, or is empty. No index is built here.
DO $swap$
DECLARE
    old        CONSTANT oid := 'log_events'::regclass;
    home       CONSTANT text := (
        SELECT format('%I', nspname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE pg_class.oid = old
    );
    owner      CONSTANT oid := (SELECT relowner FROM pg_class WHERE oid = old);
    options    CONSTANT text := coalesce(
        (SELECT ' WITH (' || array_to_string(reloptions, ', ') || ')' FROM pg_class WHERE oid = old), ''
    );
    -- PostgreSQL itself writes the statements again, with the names of now.
    indexes    CONSTANT text[] := ARRAY(
        SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = old AND indisvalid AND NOT indisunique AND relname <> 'log_events_stored_at'
    );
    end_of_old CONSTANT text := (
        SELECT substring(pg_get_constraintdef(oid) FROM '''([^'']+)''') FROM pg_constraint
        WHERE conrelid = old AND conname = 'log_events_before_end' AND convalidated
    );
    is_empty   boolean;
    name       text;
    command    text;
    granted    record;
BEGIN
    DROP TRIGGER IF EXISTS log_events_ids ON log_events;
    DROP TRIGGER IF EXISTS log_events_fill ON log_events;
    FOR name IN
        SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = old
    LOOP
        EXECUTE format('ALTER INDEX %s.%I RENAME TO %I', home, name,
                       left('log_events_before_' || regexp_replace(name, '^log_events_', ''), 63));
    END LOOP;
    EXECUTE format('ALTER TABLE %s.log_events RENAME TO log_events_before', home);
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM %s.log_events_before)', home) INTO is_empty;
    IF NOT is_empty AND end_of_old IS NULL THEN
        RAISE EXCEPTION 'log_events was empty, and is not any more' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;

    EXECUTE format('CREATE TABLE %1$s.log_events (LIKE %1$s.log_events_before INCLUDING ALL EXCLUDING INDEXES '
                   'EXCLUDING IDENTITY) PARTITION BY RANGE (stored_at)', home);
    EXECUTE format('ALTER TABLE %s.log_events DROP CONSTRAINT IF EXISTS log_events_before_end', home);
    EXECUTE format('ALTER TABLE %s.log_events OWNER TO %s', home, owner::regrole);
    EXECUTE format('COMMENT ON TABLE %s.log_events IS %L', home, obj_description(old, 'pg_class'));
    FOR granted IN
        SELECT grantee, privilege_type, is_grantable FROM pg_class, aclexplode(relacl)
        WHERE oid = old AND grantee <> owner
    LOOP
        EXECUTE format('GRANT %s ON %s.log_events TO %s%s', granted.privilege_type, home,
                       CASE WHEN granted.grantee = 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END,
                       CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    -- The sequence of a serial column stays when the old table goes.
    FOR command IN
        SELECT format('ALTER SEQUENCE %s OWNED BY %s.log_events.%I', objid::regclass, home, attname)
        FROM pg_depend JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
        WHERE refobjid = old AND refclassid = 'pg_class'::regclass AND classid = 'pg_class'::regclass AND deptype = 'a'
          AND refobjsubid > 0 AND (SELECT relkind FROM pg_class WHERE oid = objid) = 'S'
    LOOP
        EXECUTE command;
    END LOOP;
    FOREACH command IN ARRAY indexes LOOP
        EXECUTE command;
    END LOOP;
    EXECUTE format('CREATE TRIGGER log_events_ids AFTER INSERT ON %1$s.log_events REFERENCING NEW TABLE AS new_events '
                   'FOR EACH STATEMENT EXECUTE FUNCTION %1$s.note_event_ids()', home);
    EXECUTE format('CREATE TRIGGER log_events_ids_follow AFTER UPDATE ON %1$s.log_events '
                   'REFERENCING OLD TABLE AS old_events NEW TABLE AS new_events '
                   'FOR EACH STATEMENT EXECUTE FUNCTION %1$s.follow_event_ids()', home);
    EXECUTE format('ALTER TABLE ONLY %s.log_events ENABLE ALWAYS TRIGGER log_events_ids', home);
    EXECUTE format('ALTER TABLE ONLY %s.log_events ENABLE ALWAYS TRIGGER log_events_ids_follow', home);

    IF is_empty THEN
        EXECUTE format('DROP TABLE %s.log_events_before', home);
    ELSE
        EXECUTE format('ALTER TABLE %1$s.log_events ATTACH PARTITION %1$s.log_events_before '
                       'FOR VALUES FROM (MINVALUE) TO (%2$L)', home, end_of_old);
        EXECUTE format('ALTER TABLE %s.log_events_before DROP CONSTRAINT log_events_before_end', home);
    END IF;
    EXECUTE format('CREATE TABLE %1$s.log_events_default (LIKE %1$s.log_events INCLUDING ALL EXCLUDING IDENTITY)%2$s',
                   home, options);
    EXECUTE format('CREATE UNIQUE INDEX log_events_default_event_id ON %s.log_events_default (event_id)', home);
    EXECUTE format('CREATE INDEX log_events_default_stored_at ON %s.log_events_default (stored_at)', home);
    EXECUTE format('ALTER TABLE %s.log_events_default OWNER TO %s', home, owner::regrole);
    EXECUTE format('ALTER TABLE %1$s.log_events ATTACH PARTITION %1$s.log_events_default DEFAULT', home);
    EXECUTE format('SELECT %s.make_days()', home);
END $swap$;
