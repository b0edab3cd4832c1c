-- Records that could not be stored for their content, as they stood in the log.

CREATE TABLE dead_letters (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    log_id        text COLLATE "C" NOT NULL,
    log_partition integer          NOT NULL,
    log_offset    bigint           NOT NULL,
    raw           bytea            NOT NULL,
    reason        text             NOT NULL,
    sqlstate      text,            -- NULL: the record could not even be decoded
    created_at    timestamptz      NOT NULL DEFAULT now(),
    tried_at      timestamptz,     -- last replay that was refused
    replayed_at   timestamptz,     -- stored by a replay
    UNIQUE (log_id, log_partition, log_offset)
);

-- What a replay looks for: those still open, the longest untried first.
CREATE INDEX dead_letters_open ON dead_letters (tried_at NULLS FIRST, id) WHERE replayed_at IS NULL;
