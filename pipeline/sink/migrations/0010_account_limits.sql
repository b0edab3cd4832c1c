-- What operators set for accounts while the system runs. It replaces ACCOUNT_LIMITS and ACCOUNT_WEIGHTS, and is stored here
-- because a flush of Redis can't reach it.
CREATE TABLE control_account_limits (
    account text             PRIMARY KEY,
    rate    double precision,  -- events/s; NULL: no limit
    weight  double precision,  -- NULL: that of the settings
    set_by  text             NOT NULL,
    why     text             NOT NULL,
    since   timestamptz      NOT NULL
);
