-- The API keys of writers. Of a key, only its SHA-256 is stored.
CREATE TABLE api_keys (
    id        text        PRIMARY KEY,
    name      text        NOT NULL,  -- the account of its requests is key:<name>
    sha256    text        NOT NULL UNIQUE,
    protocols text[]      NOT NULL,  -- empty: all
    expires   timestamptz,           -- NULL: never
    made_by   text        NOT NULL,
    why       text        NOT NULL,
    since     timestamptz NOT NULL
);

-- Changes with each change of the keys: so the mirror in Redis is compared with one value.
CREATE TABLE api_keys_version (
    id      integer PRIMARY KEY CHECK (id = 1),
    version text    NOT NULL
);
INSERT INTO api_keys_version (id, version) VALUES (1, gen_random_uuid()::text);
