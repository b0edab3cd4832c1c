-- What people asked of the rate, kept where a flush of Redis can't reach it. One row each, at most.

CREATE TABLE control_overrides (
    id     integer          PRIMARY KEY CHECK (id = 1),
    rate   double precision NOT NULL,
    ends   timestamptz      NOT NULL,
    set_by text             NOT NULL,
    why    text             NOT NULL,
    since  timestamptz      NOT NULL
);

CREATE TABLE control_bands (
    id           integer          PRIMARY KEY CHECK (id = 1),
    rate_max     double precision NOT NULL,
    rate_min     double precision NOT NULL,
    lag_degraded bigint           NOT NULL,
    lag_critical bigint           NOT NULL,
    set_by       text             NOT NULL,
    why          text             NOT NULL,
    since        timestamptz      NOT NULL
);
