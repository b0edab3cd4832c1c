-- Events, each stored once for ever, and how far each partition of each log is stored.

CREATE TABLE log_events (
    -- COLLATE "C": ids are compared byte by byte, which is faster and never changes with the system's locales.
    event_id       text COLLATE "C" NOT NULL PRIMARY KEY,
    correlation_id text COLLATE "C" NOT NULL,
    severity       text             NOT NULL,
    message        text             NOT NULL,
    source         text             NOT NULL,
    event_time     timestamptz      NOT NULL,
    received_at    timestamptz      NOT NULL,
    attributes     jsonb,
    log_id         text COLLATE "C" NOT NULL,
    log_partition  integer          NOT NULL,
    log_offset     bigint           NOT NULL
);

CREATE INDEX log_events_correlation_id ON log_events (correlation_id);

-- BRIN: events come nearly in the order of their times, and it costs a tenth of a B-tree at insertion. Small ranges,
-- so that one event with an odd time spoils only 32 pages (about a thousand events) for the others.
CREATE INDEX log_events_event_time ON log_events USING brin (event_time)
    WITH (pages_per_range = 32, autosummarize = on);

-- A table that is only ever appended to would wait long for its vacuum, and BRIN for its summaries.
ALTER TABLE log_events SET (autovacuum_vacuum_insert_scale_factor = 0.02);

CREATE TABLE stored_offsets (
    log_id        text COLLATE "C" NOT NULL,
    log_partition integer          NOT NULL,
    next_offset   bigint           NOT NULL CHECK (next_offset >= 0),
    updated_at    timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, log_partition)
) WITH (fillfactor = 20);  -- a few rows, updated with every batch: room for updates within the page
