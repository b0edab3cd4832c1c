-- A worker of an older version, beside a newer one, stages events in a table LIKE log_events: that has the constraints of
-- log_events, and not its defaults. So a new column must not be NOT NULL, or that worker refuses every event it stages.
-- A user's own column of this name is kept as it is.
DO $nullable$
BEGIN
    IF EXISTS (
        SELECT FROM pg_attribute JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = 'log_events'::regclass AND attname = 'stored_at' AND atttypid = 'timestamptz'::regtype
          AND attnotnull AND pg_get_expr(adbin, adrelid) = 'now()'
    ) THEN
        ALTER TABLE log_events ALTER COLUMN stored_at DROP NOT NULL;
    END IF;
END $nullable$;
