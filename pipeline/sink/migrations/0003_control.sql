-- What must outlive a flush of Redis, and the row that the prober writes.

CREATE TABLE control_pauses (
    reason     text        PRIMARY KEY,
    paused_by  text        NOT NULL,
    why        text        NOT NULL,
    since      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE probes (
    id        integer     PRIMARY KEY CHECK (id = 1),
    probed_at timestamptz NOT NULL
) WITH (fillfactor = 20);
