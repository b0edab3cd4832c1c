-- Each event log that was ever drained into this database: where it was, and how far it went when it was last seen.
-- Events of a former log that were not stored are found by this.

CREATE TABLE known_logs (
    log_id  text        NOT NULL PRIMARY KEY,
    url     text        NOT NULL, -- EVENT_LOG_URL without its password
    name    text        NOT NULL, -- LOG_TOPIC on Kafka, the prefix of the keys on Redis
    ends    jsonb       NOT NULL, -- partition -> offset of the next record that is appended
    seen_at timestamptz NOT NULL DEFAULT now()
);
