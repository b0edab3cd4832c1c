-- Pauses of one partition each. A table beside control_pauses, whose key older versions of Sluice write to by its
-- name: they go on working while both run.

CREATE TABLE control_partition_pauses (
    reason        text        NOT NULL,
    log_partition integer     NOT NULL,
    paused_by     text        NOT NULL,
    why           text        NOT NULL,
    since         timestamptz NOT NULL DEFAULT now(),
    evidence      jsonb,      -- what the drain found, bounded; NULL: it could not be kept
    PRIMARY KEY (reason, log_partition)
);
