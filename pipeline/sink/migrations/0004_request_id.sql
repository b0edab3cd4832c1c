-- The request that brought an event: what its answer's X-Request-ID said, and what the logs of ingest name.

ALTER TABLE log_events ADD COLUMN request_id text COLLATE "C";  -- NULL: stored before requests had ids
