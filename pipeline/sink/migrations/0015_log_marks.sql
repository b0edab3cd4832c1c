-- How far the partitions of an event log were stored at earlier times: LOG_KEEP_HOURS after a mark, the log may delete
-- what was stored by then. Not more than that, whatever a clock says: a mark is an offset that was stored.
CREATE TABLE log_marks (
    log_id    text        NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT now(),
    offsets   jsonb       NOT NULL, -- partition -> next offset to store
    PRIMARY KEY (log_id, marked_at)
);
