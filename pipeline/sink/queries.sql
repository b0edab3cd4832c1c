-- Statements of the PostgreSQL sink, by name (see queries.py). Parameters are psycopg2's %(name)s.

-- name: set_up_session
-- An event is trimmed from the log once it is stored. So a commit must have reached the disk, whatever the server's
-- default is. Under a higher isolation level the compare-and-swap would fail instead of finding no row.
SET synchronous_commit = on;
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE;
SET TimeZone = 'UTC';
SET client_min_messages = warning;
-- Each statement is short. PostgreSQL judges the cost of one over many partitions too high, and compiles it for seconds.
SET jit = off;
-- The server ends a statement that waits for a lock, with an error. If the client only shut down its socket, the
-- backend would continue to wait, and keep the partition's lock during that time.
SET lock_timeout = %(lock_ms)s;
-- The locks of a client that vanished (its machine lost power, its network drops packets) are freed.
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 2;
SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 15000;
-- A working backend checks whether its client still exists (PostgreSQL 14; older ones notice it when they respond).
SELECT set_config(name, %(check_ms)s::text, false) FROM pg_settings WHERE name = 'client_connection_check_interval';

-- name: server_facts
SELECT pg_backend_pid(), current_setting('server_version_num')::integer, current_setting('server_encoding'),
       pg_is_in_recovery(), current_setting('fsync') = 'on',
       has_database_privilege(current_database(), 'TEMPORARY'), current_database(), current_user;

-- name: session_limits
-- A limit counts the sessions of the role that logged in, whatever role it has become since.
SELECT pg_backend_pid(), current_setting('max_connections')::integer,
       current_setting('superuser_reserved_connections')::integer,
       coalesce(current_setting('reserved_connections', true), '0')::integer, -- PostgreSQL 16
       role.rolsuper,
       EXISTS (
           SELECT FROM pg_roles AS reserved
           WHERE reserved.rolname = 'pg_use_reserved_connections' AND pg_has_role(role.oid, reserved.oid, 'USAGE')
       ),
       role.rolconnlimit, database.datconnlimit, role.rolname::text, database.datname::text
FROM pg_roles AS role, pg_database AS database
WHERE role.rolname = session_user AND database.datname = current_database();

-- name: backend_pid
SELECT pg_backend_pid();

-- name: begin_and_ask_backend_pid
BEGIN;
SELECT pg_backend_pid();

-- name: table_facts
-- No row before the table is created. A user's column is filled by a default (its own or its domain's; in the catalog
-- a generated or an identity column has one), or by a trigger. The catalog does not show what a trigger does.
WITH wanted (name, type) AS (
    VALUES ('event_id', 'text'), ('correlation_id', 'text'), ('severity', 'text'), ('message', 'text'),
           ('source', 'text'), ('event_time', 'timestamptz'), ('received_at', 'timestamptz'), ('attributes', 'jsonb'),
           ('log_id', 'text'), ('log_partition', 'integer'), ('log_offset', 'bigint'), ('request_id', 'text')
), needed (table_name, privilege) AS (
    SELECT * FROM unnest(%(tables)s::text[], %(rights)s::text[])
), columns AS (
    SELECT attribute.*, coalesce(type.typdefault, '') <> '' AS has_domain_default
    FROM pg_attribute AS attribute JOIN pg_type AS type ON type.oid = attribute.atttypid
    WHERE attribute.attrelid = to_regclass('log_events') AND attribute.attnum > 0 AND NOT attribute.attisdropped
)
SELECT
    ARRAY(
        SELECT name || ' ' || type || coalesce(' (it is ' || format_type(atttypid, atttypmod) || ')', ' (it is missing)')
        FROM wanted LEFT JOIN columns ON attname = name
        WHERE atttypid IS DISTINCT FROM type::regtype
          AND NOT (type = 'text' AND atttypid IS NOT DISTINCT FROM 'varchar'::regtype)
    ),
    ARRAY(
        SELECT attname::text FROM columns
        WHERE attnotnull AND NOT atthasdef AND attidentity = '' AND NOT has_domain_default
          AND attname NOT IN (SELECT name FROM wanted)
          AND NOT EXISTS (
              SELECT FROM pg_trigger
              WHERE tgrelid = events.oid AND NOT tgisinternal AND tgenabled <> 'D' AND (tgtype & 7) = 7
          )
    ),
    EXISTS (
        SELECT FROM pg_index JOIN columns ON attname = 'event_id' AND attnum = indkey[0]
        WHERE indrelid = events.oid AND indnkeyatts = 1 AND indisunique AND indimmediate AND indisvalid
          AND indpred IS NULL
    ),
    EXISTS (SELECT FROM pg_rewrite WHERE ev_class = events.oid AND ev_type = '3'),
    ARRAY(
        SELECT privilege || ' on ' || table_name FROM needed
        WHERE to_regclass(table_name) IS NOT NULL AND NOT has_table_privilege(to_regclass(table_name), privilege)
        UNION ALL
        SELECT 'SELECT on event_ids'
        WHERE events.is_by_day AND NOT has_table_privilege(to_regclass(events.home || '.event_ids'), 'SELECT')
    ),
    is_by_day,
    -- 4: on INSERT; 1: for each row, 2: before it, 64: instead of it. `A`: also in a session that plays a replica.
    EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = events.oid AND tgenabled = 'A' AND (tgtype & 71) = 4 AND tgqual IS NULL
          AND tgnewtable = 'new_events' AND tgfoid = to_regprocedure(events.home || '.note_event_ids()')
    ) AND EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'event_id' AND attnum = indkey[0]
        WHERE indrelid = to_regclass(events.home || '.event_ids') AND indnkeyatts = 1 AND indisunique AND indimmediate
          AND indisvalid AND indpred IS NULL
    ) AND EXISTS (
        SELECT FROM pg_class WHERE oid = to_regclass(events.home || '.event_ids') AND relpersistence = 'p'
    )
FROM (
    SELECT pg_class.oid, format('%%I', nspname) AS home,
           EXISTS (
               SELECT FROM pg_partitioned_table JOIN pg_attribute ON attrelid = partrelid AND attnum = partattrs[0]
               WHERE partrelid = pg_class.oid AND partstrat = 'r' AND attname = 'stored_at'
           ) AND to_regclass(format('%%I.event_ids', nspname)) IS NOT NULL AS is_by_day
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = to_regclass('log_events')
) AS events;

-- name: begin_and_move_offset
-- One round trip. No row is changed if the stored offset is not the expected one. The batch begins here: when it is
-- committed, everything below its first offset was stored by `batch_began_at`.
BEGIN;
INSERT INTO stored_offsets AS stored (log_id, log_partition, next_offset, last_record_offset, last_record_digest,
                                      batch_began_offset, batch_began_at)
VALUES (%(log_id)s, %(partition)s, %(next_offset)s, %(next_offset)s - 1, %(last_digest)s,
        %(expected_offset)s, clock_timestamp())
ON CONFLICT (log_id, log_partition) DO UPDATE
    SET next_offset = EXCLUDED.next_offset, updated_at = now(),
        last_record_offset = EXCLUDED.last_record_offset, last_record_digest = EXCLUDED.last_record_digest,
        batch_began_offset = EXCLUDED.batch_began_offset, batch_began_at = EXCLUDED.batch_began_at
    WHERE stored.next_offset = %(expected_offset)s;

-- name: stored_offsets
-- Ingest reads it too, perhaps before the schema was migrated: so only columns of the first migration.
SELECT log_partition, next_offset FROM stored_offsets WHERE log_id = %(log_id)s;

-- name: stored_offsets_and_batches
-- With the server's clock, in at least one row: if nothing is stored, one row without a partition.
SELECT log_partition, next_offset, batch_began_offset, extract(epoch FROM batch_began_at)::float8,
       extract(epoch FROM clock_timestamp())::float8
FROM (VALUES (1)) AS always LEFT JOIN stored_offsets ON log_id = %(log_id)s;

-- name: settled_offsets
-- SHARE waits for all transactions that have moved an offset and not committed yet, including a first offset, whose row
-- is not visible yet.
BEGIN;
SET LOCAL lock_timeout = '1s';
LOCK TABLE stored_offsets IN SHARE MODE;
SELECT log_partition, next_offset FROM stored_offsets WHERE log_id = %(log_id)s;

-- name: note_log
INSERT INTO known_logs (log_id, url, name, ends) VALUES (%(log_id)s, %(url)s, %(name)s, %(ends)s::jsonb)
ON CONFLICT (log_id) DO UPDATE SET url = EXCLUDED.url, name = EXCLUDED.name, ends = EXCLUDED.ends, seen_at = now();

-- name: mark_log
-- A mark that a wrong clock has dated into the future does not keep others from being made.
INSERT INTO log_marks (log_id, offsets)
SELECT %(log_id)s, jsonb_object_agg(log_partition, next_offset) FROM stored_offsets
WHERE log_id = %(log_id)s AND NOT EXISTS (
    SELECT FROM log_marks
    WHERE log_id = %(log_id)s AND marked_at BETWEEN now() - %(spacing_seconds)s * interval '1 second' AND now()
)
HAVING count(*) > 0
ON CONFLICT DO NOTHING;

-- name: forget_log_marks
-- All that are old enough, except the newest one of them.
DELETE FROM log_marks WHERE log_id = %(log_id)s AND marked_at < (
    SELECT max(marked_at) FROM log_marks
    WHERE log_id = %(log_id)s AND marked_at < now() - %(keep_seconds)s * interval '1 second'
);

-- name: may_lower_log_marks
SELECT coalesce(has_table_privilege(marks, 'SELECT') AND has_table_privilege(marks, 'INSERT')
                AND has_table_privilege(marks, 'DELETE'), false)
FROM (SELECT to_regclass('log_marks')::oid AS marks) AS found;

-- name: lower_log_marks
-- A partition is set back: what earlier marks say beyond that is no longer stored, and new records will be there. The
-- lock waits for a mark that is just being made, and holds up the next one until the offset is committed. Not an UPDATE:
-- Sluice's user has no right to it.
LOCK TABLE log_marks IN SHARE ROW EXCLUSIVE MODE;
WITH too_high AS (
    DELETE FROM log_marks
    WHERE log_id = %(log_id)s AND (offsets ->> %(partition)s::text)::bigint > %(next_offset)s
    RETURNING *
)
INSERT INTO log_marks (log_id, marked_at, offsets)
SELECT log_id, marked_at, offsets || jsonb_build_object(%(partition)s::text, %(next_offset)s) FROM too_high;

-- name: expired_log_records
-- At least one row, for the server's clock; without a partition if nothing expired. Never more than is stored now, and
-- never the last stored record. Nor more than any mark since the newest expired one: a lower one says that the partition
-- was set back.
WITH newest AS (
    SELECT max(marked_at) AS marked_at FROM log_marks
    WHERE log_id = %(log_id)s AND marked_at < now() - %(keep_seconds)s * interval '1 second'
), mark AS (
    SELECT key::integer AS log_partition, min(value::bigint) AS next_offset
    FROM newest JOIN log_marks ON log_marks.marked_at BETWEEN newest.marked_at AND now(), jsonb_each_text(offsets)
    WHERE log_id = %(log_id)s
    GROUP BY key
    HAVING bool_or(log_marks.marked_at = newest.marked_at)
), expired AS (
    SELECT log_partition, least(mark.next_offset, stored.next_offset - 1) AS below, stored.next_offset,
           stored.last_record_digest
    FROM mark JOIN stored_offsets AS stored USING (log_partition)
    WHERE stored.log_id = %(log_id)s AND stored.last_record_offset = stored.next_offset - 1
      AND stored.last_record_digest IS NOT NULL
)
SELECT expired.*, extract(epoch FROM clock_timestamp())::float8 FROM (VALUES (1)) AS always LEFT JOIN expired ON true;

-- name: former_logs
-- Its reader decides which were not seen for long: this server's clock may have been stepped since.
SELECT log_id, url, name, ends, extract(epoch FROM seen_at)::float8, extract(epoch FROM now() - seen_at)::float8
FROM known_logs
WHERE log_id <> %(log_id)s
ORDER BY seen_at DESC
LIMIT %(logs_max)s;

-- name: stored_position
SELECT next_offset, CASE WHEN last_record_offset = next_offset - 1 THEN last_record_digest END
FROM stored_offsets
WHERE log_id = %(log_id)s AND log_partition = %(partition)s;

-- name: copy_events
COPY log_events (event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
                 log_id, log_partition, log_offset, request_id)
FROM STDIN WITH (FORMAT binary);

-- name: make_stage
-- Only the columns that COPY names. PostgreSQL fills a column that a user has added to log_events. LIKE would copy its
-- NOT NULL without its default, which would refuse every row here.
-- `outcome` and `reason` are the result of a row that was tried alone.
CREATE TEMPORARY TABLE IF NOT EXISTS event_stage ON COMMIT DELETE ROWS AS
SELECT event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
       log_id, log_partition, log_offset, request_id, NULL::text AS outcome, NULL::text AS reason
FROM log_events
WITH NO DATA;

-- name: copy_stage
COPY event_stage (event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
                  log_id, log_partition, log_offset, request_id)
FROM STDIN WITH (FORMAT binary);

-- name: open_piece
SAVEPOINT piece;

-- name: undo_piece
ROLLBACK TO SAVEPOINT piece;
RELEASE SAVEPOINT piece;

-- name: close_piece
DELETE FROM event_stage;
RELEASE SAVEPOINT piece;

-- name: insert_from_stage
-- With a savepoint, so that a refusal keeps the rows staged. Ordered by id, so that two drains with the same ids wait
-- for each other instead of deadlocking; within one id the lowest offset wins.
SAVEPOINT staged;
INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
                        log_id, log_partition, log_offset, request_id)
SELECT event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
       log_id, log_partition, log_offset, request_id
FROM event_stage
ORDER BY event_id, log_id, log_partition, log_offset
ON CONFLICT (event_id) DO NOTHING;

-- name: find_layout
-- Whether log_events is partitioned by day. Until the transaction ends, this stays so.
LOCK TABLE ONLY log_events IN ROW EXCLUSIVE MODE;
SELECT EXISTS (
    SELECT FROM pg_partitioned_table JOIN pg_attribute ON attrelid = partrelid AND attnum = partattrs[0]
    WHERE partrelid = to_regclass('log_events') AND partstrat = 'r' AND attname = 'stored_at'
);

-- name: insert_from_stage_by_day
-- The first of each id, if that is not noted. A session that notes one of them meanwhile makes this fail with 23505: the
-- next try sees it.
SAVEPOINT staged;
INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
                        log_id, log_partition, log_offset, request_id)
SELECT event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
       log_id, log_partition, log_offset, request_id
FROM (
    SELECT DISTINCT ON (event_id) * FROM event_stage ORDER BY event_id, log_id, log_partition, log_offset
) AS staged
WHERE NOT EXISTS (SELECT FROM event_ids AS noted WHERE noted.event_id = staged.event_id)
ORDER BY event_id;

-- name: undo_insert_from_stage
ROLLBACK TO SAVEPOINT staged;
RELEASE SAVEPOINT staged;

-- name: insert_one_by_one
-- After a refusal: each row in its own subtransaction, on the server. This costs some microseconds a row; halving cost
-- some milliseconds for each refused row. An error that is the server's fault ends it. In the order of
-- insert_from_stage. By day, an id that another session has noted meanwhile raises 23505, as does a unique index of a user.
ROLLBACK TO SAVEPOINT staged;
DO $one_by_one$
DECLARE
    staged record;
    detail text;
    refused integer := 0;
BEGIN
    FOR staged IN
        SELECT ctid AS place, stage.* FROM event_stage AS stage ORDER BY event_id, log_id, log_partition, log_offset
    LOOP
        BEGIN
            IF NOT %(is_by_day)s THEN
                INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at,
                                        attributes, log_id, log_partition, log_offset, request_id)
                VALUES (staged.event_id, staged.correlation_id, staged.severity, staged.message, staged.source,
                        staged.event_time, staged.received_at, staged.attributes, staged.log_id, staged.log_partition,
                        staged.log_offset, staged.request_id)
                ON CONFLICT (event_id) DO NOTHING;
            ELSE
                INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at,
                                        attributes, log_id, log_partition, log_offset, request_id)
                SELECT staged.event_id, staged.correlation_id, staged.severity, staged.message, staged.source,
                       staged.event_time, staged.received_at, staged.attributes, staged.log_id, staged.log_partition,
                       staged.log_offset, staged.request_id
                WHERE NOT EXISTS (SELECT FROM event_ids AS noted WHERE noted.event_id = staged.event_id);
            END IF;
            IF NOT FOUND THEN
                UPDATE event_stage SET outcome = 'repeated' WHERE ctid = staged.place;
            END IF;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF %(is_by_day)s AND SQLSTATE = '23505' AND (
                EXISTS (SELECT FROM event_ids AS noted WHERE noted.event_id = staged.event_id)
                OR EXISTS (SELECT FROM log_events AS stored WHERE stored.event_id = staged.event_id)
            ) THEN
                UPDATE event_stage SET outcome = 'repeated' WHERE ctid = staged.place;
                CONTINUE;
            END IF;
            IF left(SQLSTATE, 2) = ANY (%(server_classes)s) AND SQLSTATE <> %(of_a_row)s THEN
                RAISE;
            END IF;
            GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
            UPDATE event_stage SET outcome = SQLSTATE, reason = concat_ws(' ', SQLERRM, nullif(detail, ''))
            WHERE ctid = staged.place;
            refused := refused + 1;
            EXIT WHEN refused > %(letters_max)s;
        END;
    END LOOP;
END $one_by_one$;

-- name: take_refused
-- Refused rows leave the stage: they are not conflicts.
DELETE FROM event_stage WHERE outcome <> 'repeated'
RETURNING log_id, log_partition, log_offset, outcome, reason;

-- name: count_repeated
SELECT count(*) FROM event_stage WHERE outcome = 'repeated';

-- name: conflicts_in_stage
-- Staged events whose id is stored with other content. `received_at` is not content: a repeat arrives later. So does an
-- `event_time` that ingest gave an event without one: it is not before the receipt.
SELECT staged.event_id, staged.log_id, staged.log_partition, staged.log_offset
FROM event_stage AS staged
JOIN log_events AS stored USING (event_id)
WHERE (stored.correlation_id, stored.severity, stored.message, stored.source, stored.attributes)
      IS DISTINCT FROM
      (staged.correlation_id, staged.severity, staged.message, staged.source, staged.attributes)
   OR (stored.event_time <> staged.event_time
       AND (stored.event_time < stored.received_at OR staged.event_time < staged.received_at));

-- name: days_of_repeats
-- The days (UTC) in which the events with the staged ids were stored.
SELECT DISTINCT day::text, (day + interval '24 hours')::text
FROM event_stage JOIN event_ids AS noted USING (event_id), date_trunc('day', noted.stored_at, 'UTC') AS day
WHERE day IS NOT NULL;

-- name: conflicts_in_stage_by_day
-- The same, among the events of one day. Its bounds are literals: so PostgreSQL plans and locks one partition only. With
-- hundreds of days, a plan of all takes seconds, and thousands of locks. OFFSET 0 keeps it from reading the whole day. An
-- event whose day was dropped has no content to compare with: its repeat is no conflict.
SELECT staged.event_id, staged.log_id, staged.log_partition, staged.log_offset
FROM event_stage AS staged
CROSS JOIN LATERAL (
    SELECT * FROM log_events AS kept
    WHERE kept.event_id = staged.event_id
      AND kept.stored_at >= %(begins)s::timestamptz AND kept.stored_at < %(ends)s::timestamptz
    OFFSET 0
) AS stored
WHERE (stored.correlation_id, stored.severity, stored.message, stored.source, stored.attributes)
      IS DISTINCT FROM
      (staged.correlation_id, staged.severity, staged.message, staged.source, staged.attributes)
   OR (stored.event_time <> staged.event_time
       AND (stored.event_time < stored.received_at OR staged.event_time < staged.received_at));

-- name: insert_dead_letters
-- If a record already has a letter (its partition was set back), it still has one, and it is open again. A letter of
-- another record is not changed: see set_letters_aside.
INSERT INTO dead_letters (log_id, log_partition, log_offset, raw, reason, sqlstate)
SELECT %(log_id)s, %(partition)s, letter.log_offset, letter.raw, letter.reason, letter.sqlstate
FROM unnest(%(offsets)s::bigint[], %(raws)s::bytea[], %(reasons)s::text[], %(sqlstates)s::text[])
     AS letter (log_offset, raw, reason, sqlstate)
ON CONFLICT (log_id, log_partition, log_offset) DO UPDATE
    SET reason = EXCLUDED.reason, sqlstate = EXCLUDED.sqlstate, replayed_at = NULL
    WHERE dead_letters.raw = EXCLUDED.raw;

-- name: set_letters_aside
-- Letters of other records at the places of new ones: the partition was set back since. They get another log_id, and
-- still wait for their replay.
UPDATE dead_letters AS earlier
SET log_id = earlier.log_id || ' before ' || to_char(now(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
FROM unnest(%(offsets)s::bigint[], %(raws)s::bytea[]) AS letter (log_offset, raw)
WHERE earlier.log_id = %(log_id)s AND earlier.log_partition = %(partition)s
  AND earlier.log_offset = letter.log_offset AND earlier.raw <> letter.raw;

-- name: open_dead_letters
SELECT id, log_id, log_partition, log_offset, raw
FROM dead_letters
WHERE replayed_at IS NULL
ORDER BY tried_at NULLS FIRST, id
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: database_facts
SELECT pg_database_size(current_database()),
       (SELECT count(*) FROM pg_stat_activity WHERE application_name ^@ 'sluice'),
       current_setting('max_connections')::integer;

-- name: list_dead_letters
SELECT id, log_id, log_partition, log_offset, raw, reason, sqlstate, created_at, tried_at
FROM dead_letters
WHERE replayed_at IS NULL AND id > %(after_id)s
ORDER BY id
LIMIT %(limit)s;

-- name: dead_letters_between
SELECT log_offset, reason FROM dead_letters
WHERE log_id = %(log_id)s AND log_partition = %(partition)s AND log_offset >= %(first)s AND log_offset < %(end)s
ORDER BY log_offset;

-- name: count_dead_letters
SELECT count(*), count(*) FILTER (WHERE reason = %(conflict)s) FROM dead_letters WHERE replayed_at IS NULL;

-- name: mark_replayed
UPDATE dead_letters SET replayed_at = clock_timestamp(), tried_at = clock_timestamp() WHERE id = ANY(%(ids)s);

-- name: mark_refused
UPDATE dead_letters AS letter
SET reason = refused.reason, sqlstate = refused.sqlstate, tried_at = clock_timestamp()
FROM unnest(%(ids)s::bigint[], %(reasons)s::text[], %(sqlstates)s::text[]) AS refused (id, reason, sqlstate)
WHERE letter.id = refused.id;

-- name: try_lock
SELECT pg_try_advisory_lock(%(key)s);

-- name: await_standbys
-- A commit that waits for a synchronous standby is visible to other sessions if its own session is ended, or if the
-- server restarts, before the standby has it. Standbys receive writes in their order, so a write that waits for them
-- waits for that commit too. If no standby is waited for, this writes nothing. If the wait is cancelled, PostgreSQL
-- warns and reports success (Session.await_standbys).
SELECT pg_logical_emit_message(true, 'sluice', '') WHERE current_setting('synchronous_standby_names') <> '';

-- name: try_transaction_lock
SELECT pg_try_advisory_xact_lock(%(key)s);

-- name: unlock
SELECT pg_advisory_unlock(%(key)s);

-- name: drainer
-- The other session that holds a partition's lock, and the time since its last change of state.
SELECT pid, coalesce(host(client_addr), 'this host'), coalesce(state, ''), coalesce(wait_event_type, ''),
       extract(epoch FROM clock_timestamp() - coalesce(state_change, backend_start))::float8
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid::bigint = (%(key)s::bigint >> 32) & 4294967295
  AND objid::bigint = %(key)s::bigint & 4294967295
  AND pid <> pg_backend_pid();

-- name: held_locks
-- Those of some advisory locks that any session holds.
SELECT wanted.key
FROM unnest(%(keys)s::bigint[]) AS wanted (key) JOIN pg_locks
  ON classid::bigint = (wanted.key >> 32) & 4294967295 AND objid::bigint = wanted.key & 4294967295
WHERE locktype = 'advisory' AND granted AND objsubid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- name: terminate_holder
-- pg_locks shows a 64-bit advisory key in two halves; objsubid 1 marks such a key. A session changes its state at the
-- begin and end of each statement. That of another role may be hidden: then it counts as quiet. So it does if the
-- change is in the future: the server's clock was set back, and a frozen session would keep its lock for as long.
SELECT pid, pg_terminate_backend(pid)
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid::bigint = (%(key)s::bigint >> 32) & 4294967295
  AND objid::bigint = %(key)s::bigint & 4294967295
  AND pid <> pg_backend_pid()
  AND coalesce(
      clock_timestamp() - state_change NOT BETWEEN interval '0' AND %(quiet_seconds)s * interval '1 second', true
  );

-- name: retention_facts
-- Of a table that its user partitioned, each leaf needs the index. Of one by day, no partition is opened or locked: there
-- may be hundreds.
WITH leaves AS (
    SELECT oid FROM pg_class WHERE oid = to_regclass('log_events') AND relkind = 'r'
    UNION
    SELECT relid FROM pg_partition_tree(CASE WHEN NOT is_by_day() THEN to_regclass('log_events') END) WHERE isleaf
), found AS (
    SELECT
        EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = to_regclass('log_events') AND attname = 'stored_at' AND NOT attisdropped
              AND atttypid = 'timestamptz'::regtype AND atthasdef
        ) AS has_stored_at,
        NOT EXISTS (
            SELECT FROM leaves WHERE NOT EXISTS (
                SELECT FROM pg_index JOIN pg_attribute ON attrelid = leaves.oid AND attnum = indkey[0]
                WHERE indrelid = leaves.oid AND attname = 'stored_at' AND indisvalid AND indpred IS NULL
            )
        ) AS has_index,
        pg_has_role(relowner, 'USAGE') AND relkind = 'r' AND pg_table_size(oid) < %(small_bytes)s AS is_small_and_own,
        is_by_day() AS by_day
    FROM pg_class WHERE oid = to_regclass('log_events')
)
SELECT extract(epoch FROM clock_timestamp())::float8, event_days, letter_days,
       has_function_privilege('delete_expired_events(integer, timestamptz)', 'EXECUTE')
           AND has_function_privilege('delete_expired_dead_letters(integer)', 'EXECUTE'),
       has_stored_at, has_index OR by_day, is_small_and_own,
       NULL::float8, id_days, by_day, has_index AND NOT by_day -- see oldest_age
FROM retention, found;

-- name: oldest_age
SELECT extract(epoch FROM clock_timestamp() - min(stored_at))::float8 FROM log_events;

-- name: day_facts
SELECT extract(epoch FROM clock_timestamp() - oldest)::float8, has_today, days_ahead, has_default_rows,
       to_regclass('event_ids_stored_at') IS NOT NULL
FROM day_facts();

-- name: begun_days
-- The partitions in which events may be stored, the newest first.
SELECT leaf::oid FROM day_bounds() WHERE begins IS NULL OR begins <= now() ORDER BY begins DESC NULLS FIRST;

-- name: unnoted_id
SELECT unnoted_id(%(place)s::oid);

-- name: users_of_the_table
-- The transactions that hold a lock on the whole table, and the time of PostgreSQL's clock.
SELECT virtualtransaction, pid, extract(epoch FROM clock_timestamp())::float8
FROM pg_locks
WHERE locktype = 'relation' AND granted AND relation = to_regclass('log_events')
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- name: delete_expired_events
SELECT deleted, reached FROM delete_expired_events(%(rows_max)s, coalesce(%(since)s, '-infinity'::timestamptz));

-- name: delete_expired_ids
SELECT deleted, reached FROM delete_expired_ids(%(rows_max)s, coalesce(%(since)s, '-infinity'::timestamptz));

-- name: may_make_days
SELECT coalesce(has_function_privilege(to_regprocedure('make_days()'), 'EXECUTE'), false);

-- name: make_days
SELECT make_days();

-- name: expired_day
-- The bounds of what drop_expired_day drops next; no row if there is nothing.
SELECT leaf::text, begins::text, ends::text FROM day_bounds()
WHERE ends <= now() - (SELECT event_days FROM retention) * interval '24 hours'
ORDER BY ends LIMIT 1;

-- name: count_day
BEGIN;
SET LOCAL statement_timeout = %(count_ms)s;
SELECT count(*) FROM log_events WHERE stored_at >= %(begins)s::timestamptz AND stored_at < %(ends)s::timestamptz;

-- name: drop_expired_day
SELECT drop_expired_day();

-- name: delete_expired_dead_letters
SELECT deleted, never_stored FROM delete_expired_dead_letters(%(rows_max)s);

-- name: retention
SELECT event_days, letter_days, id_days FROM retention;

-- name: set_retention
UPDATE retention SET event_days = %(event_days)s, letter_days = %(letter_days)s, id_days = %(id_days)s;

-- name: index_of_ages
-- Whether the table is partitioned, its bytes, and whether its index is complete (NULL: there is none).
SELECT relkind = 'p', pg_table_size(pg_class.oid), indisvalid
FROM pg_class LEFT JOIN pg_index ON indexrelid = to_regclass('log_events_stored_at')
WHERE pg_class.oid = to_regclass('log_events');

-- name: make_index_of_ages
-- Events are stored while it is made. It waits for all open transactions, so it is not for a tick.
CREATE INDEX CONCURRENTLY log_events_stored_at ON log_events (stored_at);

-- name: make_index_of_ages_at_once
-- For a small table. Drains wait for it.
BEGIN;
SET LOCAL lock_timeout = '500ms';
CREATE INDEX log_events_stored_at ON log_events (stored_at);
COMMIT;

-- name: drop_index_of_ages
DROP INDEX CONCURRENTLY IF EXISTS log_events_stored_at;

-- name: sessions_of_older_versions
-- Those of this version have it in their names. A role that may not see another's sessions finds no name there.
SELECT pid, coalesce(usename, ''), coalesce(host(client_addr), '')
FROM pg_stat_activity
WHERE datname = current_database() AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
  AND coalesce(application_name, 'sluice') = 'sluice'
ORDER BY pid;

-- name: changeover_facts
-- Of a table that is to be partitioned by day: whether it is, what keeps it from it, and how far the change is.
WITH events AS (
    SELECT pg_class.*, format('%I', nspname) AS home
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = to_regclass('log_events')
)
SELECT is_by_day(), ARRAY(
    SELECT 'it is partitioned already' FROM events WHERE relkind = 'p'
    UNION ALL SELECT 'it is part of an inheritance' FROM events, pg_inherits WHERE events.oid IN (inhrelid, inhparent)
    UNION ALL SELECT 'its column stored_at is missing, or is no timestamptz with the default now()' FROM events WHERE NOT EXISTS (
        SELECT FROM pg_attribute JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = events.oid AND attname = 'stored_at' AND atttypid = 'timestamptz'::regtype
          AND pg_get_expr(adbin, adrelid) = 'now()')
    UNION ALL SELECT 'it has no unique index on event_id alone' FROM events WHERE NOT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'event_id' AND attnum = indkey[0]
        WHERE indrelid = events.oid AND indnkeyatts = 1 AND indisunique AND indimmediate AND indisvalid
          AND indpred IS NULL)
    UNION ALL SELECT 'the unique index ' || indexrelid::regclass FROM events JOIN pg_index ON indrelid = events.oid
        WHERE indisunique AND NOT (indnkeyatts = 1 AND indpred IS NULL AND indkey[0] = (
            SELECT attnum FROM pg_attribute WHERE attrelid = events.oid AND attname = 'event_id'))
    UNION ALL SELECT 'the index ' || indexrelid::regclass || ', which is not valid' FROM events JOIN pg_index ON indrelid = events.oid
        WHERE NOT indisvalid
    UNION ALL SELECT 'the constraint ' || conname FROM events JOIN pg_constraint ON events.oid IN (conrelid, confrelid)
        WHERE contype IN ('f', 'x') OR (contype = 'c' AND NOT convalidated AND conname <> 'log_events_before_end')
    UNION ALL SELECT 'the trigger ' || tgname FROM events JOIN pg_trigger ON tgrelid = events.oid
        WHERE NOT tgisinternal AND tgname NOT IN ('log_events_ids', 'log_events_ids_follow', 'log_events_fill')
    UNION ALL SELECT DISTINCT 'the view or rule ' || pg_describe_object('pg_rewrite'::regclass, objid, 0)
        FROM events JOIN pg_depend ON refobjid = events.oid AND classid = 'pg_rewrite'::regclass
    UNION ALL SELECT 'the object ' || pg_describe_object(classid, objid, objsubid)
        FROM events JOIN pg_depend ON refclassid = 'pg_type'::regclass AND refobjid = reltype AND deptype = 'n'
    UNION ALL SELECT 'row security' FROM events WHERE relrowsecurity OR EXISTS (SELECT FROM pg_policy WHERE polrelid = events.oid)
    -- Also one FOR ALL TABLES: it would publish the days under names that no subscriber has, and then nothing more.
    UNION ALL SELECT 'the publication ' || pubname FROM events JOIN pg_publication_tables AS published
        ON published.tablename = relname AND published.schemaname = relnamespace::regnamespace::name
    UNION ALL SELECT 'a right on its column ' || attname FROM events JOIN pg_attribute ON attrelid = events.oid WHERE attacl IS NOT NULL AND NOT attisdropped
    UNION ALL SELECT 'the identity column ' || attname FROM events JOIN pg_attribute ON attrelid = events.oid WHERE attidentity <> '' AND NOT attisdropped
)::text[],
EXISTS (SELECT FROM events JOIN pg_trigger ON tgrelid = events.oid
        WHERE tgname = 'log_events_ids' AND tgenabled = 'A' AND (tgtype & 71) = 4
          AND tgfoid IN (to_regprocedure(home || '.copy_event_ids()'), to_regprocedure(home || '.note_event_ids()'))),
EXISTS (SELECT FROM events JOIN pg_constraint ON conrelid = events.oid
        WHERE conname = 'log_events_before_end' AND convalidated
          AND substring(pg_get_constraintdef(pg_constraint.oid) FROM '''([^'']+)''')::timestamptz > now() + interval '1 day');

-- name: begin_changeover
-- An autovacuum ends for this lock, after PostgreSQL's deadlock_timeout, and nobody who stores waits for it. Only what
-- comes next holds up others: so its own wait is short.
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '30s';
LOCK TABLE ONLY log_events IN SHARE UPDATE EXCLUSIVE MODE;
SET LOCAL lock_timeout = '500ms';

-- name: note_new_ids
-- Between the commit of this and the change, each new event's id is noted, and each new event has a time.
LOCK TABLE ONLY log_events IN SHARE ROW EXCLUSIVE MODE;
DROP TRIGGER IF EXISTS log_events_ids ON log_events;
DROP TRIGGER IF EXISTS log_events_ids_follow ON log_events;
DROP TRIGGER IF EXISTS log_events_fill ON log_events;
CREATE TRIGGER log_events_ids AFTER INSERT ON log_events REFERENCING NEW TABLE AS new_events
    FOR EACH STATEMENT EXECUTE FUNCTION copy_event_ids();
CREATE TRIGGER log_events_ids_follow AFTER UPDATE ON log_events
    REFERENCING OLD TABLE AS old_events NEW TABLE AS new_events
    FOR EACH STATEMENT EXECUTE FUNCTION follow_event_ids();
CREATE TRIGGER log_events_fill BEFORE INSERT ON log_events FOR EACH ROW WHEN (NEW.stored_at IS NULL)
    EXECUTE FUNCTION fill_stored_at();
ALTER TABLE log_events ENABLE ALWAYS TRIGGER log_events_ids, ENABLE ALWAYS TRIGGER log_events_ids_follow,
    ENABLE ALWAYS TRIGGER log_events_fill;
CREATE TABLE IF NOT EXISTS event_ids_progress (after_id text);
TRUNCATE event_ids_progress;
INSERT INTO event_ids_progress VALUES (NULL);
COMMIT;

-- name: progress
SELECT after_id FROM event_ids_progress;

-- name: restart_progress
UPDATE event_ids_progress SET after_id = NULL;

-- name: fill_times
UPDATE log_events SET stored_at = now()
WHERE stored_at IS NULL AND event_id IN (
    SELECT event_id FROM log_events WHERE %(after)s::text IS NULL OR event_id > %(after)s ORDER BY event_id LIMIT %(rows_max)s
);

-- name: note_ids
-- One step, and how far it is.
WITH step AS (
    SELECT event_id, stored_at FROM log_events
    WHERE %(after)s::text IS NULL OR event_id > %(after)s ORDER BY event_id LIMIT %(rows_max)s
), noted AS (
    INSERT INTO event_ids (event_id, stored_at) SELECT event_id, stored_at FROM step ON CONFLICT DO NOTHING
), reached AS (
    UPDATE event_ids_progress SET after_id = (SELECT max(event_id) FROM step) WHERE EXISTS (SELECT FROM step)
)
SELECT count(*), max(event_id) FROM step;

-- name: unnoted_event
SELECT event_id FROM log_events AS stored
WHERE NOT EXISTS (SELECT FROM event_ids AS noted WHERE noted.event_id = stored.event_id) LIMIT 1;

-- name: set_end
-- Not before the day after tomorrow ends: until then, the change can be finished.
LOCK TABLE ONLY log_events IN ACCESS EXCLUSIVE MODE;
ALTER TABLE log_events DROP CONSTRAINT IF EXISTS log_events_before_end;
DO $set_end$ BEGIN
    EXECUTE format('ALTER TABLE log_events ADD CONSTRAINT log_events_before_end '
                   'CHECK (stored_at IS NOT NULL AND stored_at < %L) NOT VALID',
                   date_trunc('day', now(), 'UTC') + interval '72 hours');
END $set_end$;
COMMIT;

-- name: validate_end
-- It reads the table, and holds up nobody who stores.
ALTER TABLE log_events VALIDATE CONSTRAINT log_events_before_end;

-- name: has_events
SELECT EXISTS (SELECT FROM log_events);

-- name: lock_for_swap
LOCK TABLE log_events IN ACCESS EXCLUSIVE MODE;

-- name: end_of_swap
DROP TABLE IF EXISTS event_ids_progress;
COMMIT;

-- name: default_in_the_way
-- The default partition, if it is why days ahead can't be made: see make_days.
SELECT bounds.leaf::text FROM day_bounds() AS bounds
WHERE bounds.begins IS NULL AND pg_relation_size(bounds.leaf) > 4 << 20 AND NOT EXISTS (
    SELECT FROM day_bounds() WHERE begins <= date_trunc('day', now(), 'UTC') + interval '168 hours'
      AND ends > date_trunc('day', now(), 'UTC') + interval '168 hours');

-- name: set_default_end
-- No event of the days from then on is in the default partition: so they can be made without reading it.
DO $set_end$
DECLARE
    leaf CONSTANT regclass := (SELECT bounds.leaf FROM day_bounds() AS bounds WHERE begins IS NULL);
BEGIN
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS log_events_default_end, '
                   'ADD CONSTRAINT log_events_default_end '
                   'CHECK (stored_at < %L OR stored_at >= %L OR stored_at IS NULL) NOT VALID',
                   leaf, date_trunc('day', now(), 'UTC') + interval '72 hours',
                   date_trunc('day', now(), 'UTC') + interval '240 hours');
END $set_end$;
COMMIT;

-- name: mend_triggers
-- Of a table by day.
LOCK TABLE ONLY log_events IN SHARE ROW EXCLUSIVE MODE;
DROP TRIGGER IF EXISTS log_events_ids ON log_events;
CREATE TRIGGER log_events_ids AFTER INSERT ON log_events REFERENCING NEW TABLE AS new_events
    FOR EACH STATEMENT EXECUTE FUNCTION note_event_ids();
ALTER TABLE ONLY log_events ENABLE ALWAYS TRIGGER log_events_ids;
COMMIT;

-- name: note_missing_ids
INSERT INTO event_ids (event_id, stored_at)
SELECT event_id, stored_at FROM log_events AS stored
WHERE NOT EXISTS (SELECT FROM event_ids AS noted WHERE noted.event_id = stored.event_id)
ON CONFLICT DO NOTHING;

-- name: index_of_id_ages
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('event_ids_stored_at');

-- name: make_index_of_id_ages
CREATE INDEX CONCURRENTLY event_ids_stored_at ON event_ids (stored_at);

-- name: drop_index_of_id_ages
DROP INDEX CONCURRENTLY IF EXISTS event_ids_stored_at;

-- name: old_table_needs_index
-- Whether the table from before the days is there, and its expired events can't be found.
SELECT EXISTS (SELECT FROM day_bounds() WHERE begins = '-infinity' AND NOT has_index_of_ages(leaf));

-- name: drop_index_of_old_ages
DROP INDEX CONCURRENTLY IF EXISTS log_events_before_stored_at;

-- name: make_index_of_old_ages
CREATE INDEX CONCURRENTLY log_events_before_stored_at ON log_events_before (stored_at);

-- name: probe
INSERT INTO probes (id, probed_at) VALUES (1, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET probed_at = EXCLUDED.probed_at;

-- name: probe_storing
-- The steps of storing, rolled back: this detects a lock on the table, or a missing column. Each probe has its own id,
-- because it would wait for another probe with the same id.
BEGIN;
INSERT INTO stored_offsets (log_id, log_partition, next_offset) VALUES (%(id)s, 0, 0);
INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at, attributes,
                        log_id, log_partition, log_offset, request_id)
VALUES (%(id)s, 'sluice-probe', 'INFO', 'a probe, rolled back', 'sluice', now(), now(), NULL, %(id)s, 0, 0, NULL);

-- name: lock_holders
-- Sessions that hold, or wait before us for, a lock on a table that a drain writes to; and sessions that block another
-- of our sessions at this moment. The tables include partitions of log_events.
WITH written AS (
    SELECT oid FROM pg_class
    WHERE oid IN (to_regclass('log_events'), to_regclass('event_ids'), to_regclass('stored_offsets'),
                  to_regclass('dead_letters'), to_regclass('probes'))
    UNION
    SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('log_events')
), blockers AS (
    SELECT pid, min(relation::regclass::text) AS relation, min(mode) AS mode
    FROM pg_locks
    WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation IN (SELECT oid FROM written)
      AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    GROUP BY pid
    UNION ALL
    SELECT DISTINCT unnest(pg_blocking_pids(pid)), NULL, NULL
    FROM pg_stat_activity
    WHERE application_name ^@ 'sluice' AND datname = current_database() AND wait_event_type = 'Lock'
)
SELECT DISTINCT ON (pid) pid, coalesce(application_name, ''), coalesce(usename, ''), coalesce(state, ''),
       left(coalesce(query, ''), 80), extract(epoch FROM coalesce(xact_start, query_start))::float8, relation, mode
FROM blockers JOIN pg_stat_activity USING (pid)
WHERE pid <> pg_backend_pid()
ORDER BY pid, relation NULLS LAST;

-- name: load_operator_state
-- Everything in one statement, since each tick of the control loop reads it.
SELECT
    (SELECT coalesce(jsonb_agg(jsonb_build_array(
                reason, paused_by, why, extract(epoch FROM since)::float8, log_partition
            ) ORDER BY log_partition IS NOT NULL, reason, log_partition), '[]')
        FROM (
            SELECT reason, paused_by, why, since, NULL::integer AS log_partition FROM control_pauses
            UNION ALL SELECT reason, paused_by, why, since, log_partition FROM control_partition_pauses
        ) AS pauses),
    (SELECT jsonb_build_array(rate, extract(epoch FROM ends)::float8, set_by, why, extract(epoch FROM since)::float8)
        FROM control_overrides WHERE ends > clock_timestamp()),
    (SELECT jsonb_build_array(
            rate_max, rate_min, lag_degraded, lag_critical, set_by, why, extract(epoch FROM since)::float8
        )
        FROM control_bands),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(
                account, rate, weight, set_by, why, extract(epoch FROM since)::float8
            ) ORDER BY account), '[]')
        FROM control_account_limits),
    (SELECT version || CASE WHEN EXISTS (SELECT FROM api_keys WHERE level IS NOT NULL) THEN ' with levels' ELSE '' END
        FROM api_keys_version WHERE id = 1);

-- name: save_pause
-- A reason that is already saved keeps its first author and time.
INSERT INTO control_pauses (reason, paused_by, why, since)
VALUES (%(reason)s, %(paused_by)s, %(why)s, to_timestamp(%(since)s))
ON CONFLICT (reason) DO NOTHING;

-- name: delete_pause
DELETE FROM control_pauses WHERE reason = %(reason)s;

-- name: save_partition_pause
-- As above; but missing evidence is added.
INSERT INTO control_partition_pauses AS kept (reason, log_partition, paused_by, why, since, evidence)
VALUES (%(reason)s, %(partition)s, %(paused_by)s, %(why)s, to_timestamp(%(since)s), %(evidence)s)
ON CONFLICT (reason, log_partition) DO UPDATE SET evidence = coalesce(kept.evidence, EXCLUDED.evidence);

-- name: delete_partition_pause
DELETE FROM control_partition_pauses WHERE reason = %(reason)s AND log_partition = %(partition)s;

-- name: pause_evidence
SELECT evidence FROM control_partition_pauses WHERE reason = %(reason)s AND log_partition = %(partition)s;

-- name: save_override
INSERT INTO control_overrides (id, rate, ends, set_by, why, since)
VALUES (1, %(rate)s, to_timestamp(%(until)s), %(set_by)s, %(why)s, to_timestamp(%(since)s))
ON CONFLICT (id) DO UPDATE
    SET rate = EXCLUDED.rate, ends = EXCLUDED.ends, set_by = EXCLUDED.set_by, why = EXCLUDED.why,
        since = EXCLUDED.since;

-- name: delete_override
DELETE FROM control_overrides;

-- name: save_bands
INSERT INTO control_bands (id, rate_max, rate_min, lag_degraded, lag_critical, set_by, why, since)
VALUES (1, %(rate_max)s, %(rate_min)s, %(lag_degraded)s, %(lag_critical)s, %(set_by)s, %(why)s,
        to_timestamp(%(since)s))
ON CONFLICT (id) DO UPDATE
    SET rate_max = EXCLUDED.rate_max, rate_min = EXCLUDED.rate_min, lag_degraded = EXCLUDED.lag_degraded,
        lag_critical = EXCLUDED.lag_critical, set_by = EXCLUDED.set_by, why = EXCLUDED.why, since = EXCLUDED.since;

-- name: delete_bands
DELETE FROM control_bands;

-- name: save_account_limit
INSERT INTO control_account_limits (account, rate, weight, set_by, why, since)
VALUES (%(account)s, %(rate)s, %(weight)s, %(set_by)s, %(why)s, to_timestamp(%(since)s))
ON CONFLICT (account) DO UPDATE
    SET rate = EXCLUDED.rate, weight = EXCLUDED.weight, set_by = EXCLUDED.set_by, why = EXCLUDED.why,
        since = EXCLUDED.since;

-- name: delete_account_limit
DELETE FROM control_account_limits WHERE account = %(account)s;

-- name: load_keys
SELECT id, name, sha256, protocols, extract(epoch FROM expires)::float8, made_by, why,
       extract(epoch FROM since)::float8, level
FROM api_keys ORDER BY id;

-- name: keys_version
-- A control worker of a version without levels copies keys without them, under the version alone: that copy must not
-- count as equal. `load_operator_state` has the same.
SELECT version || CASE WHEN EXISTS (SELECT FROM api_keys WHERE level IS NOT NULL) THEN ' with levels' ELSE '' END
FROM api_keys_version WHERE id = 1;

-- name: save_key
WITH made AS (
    INSERT INTO api_keys (id, name, sha256, protocols, expires, made_by, why, since, level)
    VALUES (%(id)s, %(name)s, %(sha256)s, %(protocols)s::text[], to_timestamp(%(expires)s), %(made_by)s, %(why)s,
            to_timestamp(%(since)s), %(level)s)
    ON CONFLICT (id) DO NOTHING
    RETURNING 1
)
UPDATE api_keys_version SET version = gen_random_uuid()::text WHERE EXISTS (SELECT FROM made);

-- name: delete_keys
WITH gone AS (
    DELETE FROM api_keys WHERE id = ANY(%(ids)s::text[])
    RETURNING 1
), changed AS (
    UPDATE api_keys_version SET version = gen_random_uuid()::text WHERE EXISTS (SELECT FROM gone)
)
SELECT count(*) FROM gone;

-- name: role_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s), current_database(), current_schema();

-- name: missing_rights
SELECT ARRAY(
    SELECT privilege || ' on ' || table_name
    FROM unnest(%(tables)s::text[], %(rights)s::text[]) AS needed (table_name, privilege)
    WHERE NOT has_table_privilege(%(role)s::name, table_name, privilege)
    UNION ALL
    SELECT 'EXECUTE on ' || function
    FROM unnest(%(functions)s::text[]) AS needed (function)
    WHERE NOT has_function_privilege(%(role)s::name, function, 'EXECUTE')
    UNION ALL
    SELECT privilege || ' on the database'
    FROM unnest(ARRAY['CONNECT', 'TEMPORARY']) AS needed (privilege)
    WHERE NOT has_database_privilege(%(role)s::name, current_database(), privilege)
    UNION ALL
    SELECT 'USAGE on the schema ' || current_schema()
    WHERE NOT has_schema_privilege(%(role)s::name, current_schema(), 'USAGE')
);

-- name: has_schema_migrations
SELECT to_regclass('schema_migrations') IS NOT NULL;

-- name: make_schema_migrations
CREATE TABLE schema_migrations (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    sha256     text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: begin_migration
-- The lock ends with the transaction: it can't stay on a backend of a pooler.
BEGIN;
SET LOCAL client_min_messages = warning;
-- While a migration waits for a table, all later sessions wait too. So it gives up soon, and tries again.
SET LOCAL lock_timeout = '500ms';
-- PostgreSQL cancels an autovacuum for a session that waits for its table, but only after deadlock_timeout. On a large
-- table an autovacuum takes hours. So if there is one, wait a little longer than that, but not so long that a drain's own
-- wait for a lock fails. (The session of an autovacuum belongs to no role. A role that may not see all sessions sees no
-- more of it.)
SELECT set_config('lock_timeout', (setting::integer + 250)::text, true)
FROM pg_settings
WHERE name = 'deadlock_timeout' AND setting::integer BETWEEN 500 AND 1000 AND EXISTS (
    SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'relation' AND mode = 'ShareUpdateExclusiveLock' AND usesysid IS NULL
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation >= 16384  -- not one of PostgreSQL's own
);
SELECT pg_try_advisory_xact_lock(%(key)s);

-- name: migration_lock_holder
-- Of a session of another role, PostgreSQL shows only that it exists.
SELECT activity.pid, coalesce(activity.application_name, 'of another role'), coalesce(activity.state, 'state hidden'),
       coalesce(activity.state_change::text, 'an unknown time')
FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND held.classid::bigint = (%(key)s::bigint >> 32) & 4294967295
  AND held.objid::bigint = %(key)s::bigint & 4294967295;

-- name: applied_migrations
SELECT version, name, sha256 FROM schema_migrations ORDER BY version;

-- name: record_migration
INSERT INTO schema_migrations (version, name, sha256) VALUES (%(version)s, %(name)s, %(sha256)s);
