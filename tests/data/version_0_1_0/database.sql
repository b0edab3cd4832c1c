SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.control_bands (
    id integer NOT NULL,
    rate_max double precision NOT NULL,
    rate_min double precision NOT NULL,
    lag_degraded bigint NOT NULL,
    lag_critical bigint NOT NULL,
    set_by text NOT NULL,
    why text NOT NULL,
    since timestamp with time zone NOT NULL,
    CONSTRAINT control_bands_id_check CHECK ((id = 1))
);
CREATE TABLE public.control_overrides (
    id integer NOT NULL,
    rate double precision NOT NULL,
    ends timestamp with time zone NOT NULL,
    set_by text NOT NULL,
    why text NOT NULL,
    since timestamp with time zone NOT NULL,
    CONSTRAINT control_overrides_id_check CHECK ((id = 1))
);
CREATE TABLE public.control_pauses (
    reason text NOT NULL,
    paused_by text NOT NULL,
    why text NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.dead_letters (
    id bigint NOT NULL,
    log_id text NOT NULL COLLATE pg_catalog."C",
    log_partition integer NOT NULL,
    log_offset bigint NOT NULL,
    raw bytea NOT NULL,
    reason text NOT NULL,
    sqlstate text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    tried_at timestamp with time zone,
    replayed_at timestamp with time zone
);
ALTER TABLE public.dead_letters ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.dead_letters_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE public.log_events (
    event_id text NOT NULL COLLATE pg_catalog."C",
    correlation_id text NOT NULL COLLATE pg_catalog."C",
    severity text NOT NULL,
    message text NOT NULL,
    source text NOT NULL,
    event_time timestamp with time zone NOT NULL,
    received_at timestamp with time zone NOT NULL,
    attributes jsonb,
    log_id text NOT NULL COLLATE pg_catalog."C",
    log_partition integer NOT NULL,
    log_offset bigint NOT NULL,
    request_id text COLLATE pg_catalog."C"
)
WITH (autovacuum_vacuum_insert_scale_factor='0.02');
CREATE TABLE public.probes (
    id integer NOT NULL,
    probed_at timestamp with time zone NOT NULL,
    CONSTRAINT probes_id_check CHECK ((id = 1))
)
WITH (fillfactor='20');
CREATE TABLE public.schema_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.stored_offsets (
    log_id text NOT NULL COLLATE pg_catalog."C",
    log_partition integer NOT NULL,
    next_offset bigint NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT stored_offsets_next_offset_check CHECK ((next_offset >= 0))
)
WITH (fillfactor='20');
INSERT INTO public.control_pauses VALUES ('operator', 'ann@vm', 'a new version', '2026-11-27 21:34:41.313057+00');
INSERT INTO public.log_events VALUES ('kept-0', 'c-0', 'INFO', 'event 0	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 0}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 0, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-1', 'c-1', 'WARN', 'event 1	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.001+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 1}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 1, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-2', 'c-2', 'ERROR', 'event 2	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.002+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 2}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 2, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-3', 'c-3', 'INFO', 'event 3	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.003+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 3}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 3, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-7', 'c-0', 'WARN', 'event 7	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.007+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 7}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 4, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-8', 'c-1', 'ERROR', 'event 8	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.008+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 8}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 5, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-9', 'c-2', 'INFO', 'event 9	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.009+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 9}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 6, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-10', 'c-3', 'WARN', 'event 10	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20.01+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 10}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 7, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-14', 'c-0', 'ERROR', 'event 14	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.014+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 14}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 8, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-15', 'c-1', 'INFO', 'event 15	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20.015+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 15}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 9, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-16', 'c-2', 'WARN', 'event 16	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.016+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 16}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 10, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-17', 'c-3', 'ERROR', 'event 17	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.017+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 17}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 11, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-21', 'c-0', 'INFO', 'event 21	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.021+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 21}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 12, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-22', 'c-1', 'WARN', 'event 22	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.022+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 22}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 13, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-23', 'c-2', 'ERROR', 'event 23	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.023+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 23}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 14, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-24', 'c-3', 'INFO', 'event 24	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.024+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 24}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 15, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-28', 'c-0', 'WARN', 'event 28	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.028+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 28}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 16, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-29', 'c-1', 'ERROR', 'event 29	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.029+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 29}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 17, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-30', 'c-2', 'INFO', 'event 30	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20.03+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 30}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 18, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-31', 'c-3', 'WARN', 'event 31	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.031+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 31}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 19, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-35', 'c-0', 'ERROR', 'event 35	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20.035+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 35}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 20, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-36', 'c-1', 'INFO', 'event 36	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.036+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 36}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 21, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-37', 'c-2', 'WARN', 'event 37	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.037+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 37}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 22, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-38', 'c-3', 'ERROR', 'event 38	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.038+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 38}', '1fbcb64fe6e64273b465a21944eb069c.2', 0, 23, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-4', 'c-4', 'WARN', 'event 4	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.004+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 4}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 0, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-5', 'c-5', 'ERROR', 'event 5	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20.005+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 5}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 1, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-6', 'c-6', 'INFO', 'event 6	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.006+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 6}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 2, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-11', 'c-4', 'ERROR', 'event 11	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.011+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 11}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 3, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-12', 'c-5', 'INFO', 'event 12	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.012+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 12}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 4, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-13', 'c-6', 'WARN', 'event 13	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.013+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 13}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 5, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-18', 'c-4', 'INFO', 'event 18	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.018+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 18}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 6, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-19', 'c-5', 'WARN', 'event 19	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.019+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 19}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 7, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-20', 'c-6', 'ERROR', 'event 20	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20.02+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 20}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 8, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-25', 'c-4', 'WARN', 'event 25	with a tab, a \ and an é', 'shop/0', '2023-11-14 22:13:20.025+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 25}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 9, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-26', 'c-5', 'ERROR', 'event 26	with a tab, a \ and an é', 'shop/1', '2023-11-14 22:13:20.026+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 26}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 10, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-27', 'c-6', 'INFO', 'event 27	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.027+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 27}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 11, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-32', 'c-4', 'ERROR', 'event 32	with a tab, a \ and an é', 'shop/2', '2023-11-14 22:13:20.032+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 32}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 12, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-33', 'c-5', 'INFO', 'event 33	with a tab, a \ and an é', 'shop/3', '2023-11-14 22:13:20.033+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 33}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 13, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-34', 'c-6', 'WARN', 'event 34	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.034+00', '2026-11-27 21:34:36.833+00', '{"even": true, "number": 34}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 14, 'd59176bb7da3-128');
INSERT INTO public.log_events VALUES ('kept-39', 'c-4', 'INFO', 'event 39	with a tab, a \ and an é', 'shop/4', '2023-11-14 22:13:20.039+00', '2026-11-27 21:34:36.833+00', '{"even": false, "number": 39}', '1fbcb64fe6e64273b465a21944eb069c.2', 1, 15, 'd59176bb7da3-128');
INSERT INTO public.schema_migrations VALUES (1, '0001_events.sql', '2c8a7e621ec20673cadcd8b184a4dd6389cc180451845426dab5b31b7227b8e5', '2026-11-27 21:34:36.579743+00');
INSERT INTO public.schema_migrations VALUES (2, '0002_dead_letters.sql', 'b528bc05112d0f120b137eaa9071952b1152b18f043720c50be5bb9ada0b70cb', '2026-11-27 21:34:36.627979+00');
INSERT INTO public.schema_migrations VALUES (3, '0003_control.sql', 'f81644119b05c99d074839f9c4d72b67db21c19ab845fe6afd7ff170830cc00e', '2026-11-27 21:34:36.664106+00');
INSERT INTO public.schema_migrations VALUES (4, '0004_request_id.sql', '839b530ea21c1b19271528fc18210ca90b159184c1c7631c16aae5514db3099d', '2026-11-27 21:34:36.712789+00');
INSERT INTO public.schema_migrations VALUES (5, '0005_overrides.sql', '7f079c6e87b4c1e3d13d8378a14ae377c581115f89f0ccc2a62dddd9052d54b7', '2026-11-27 21:34:36.723115+00');
INSERT INTO public.stored_offsets VALUES ('1fbcb64fe6e64273b465a21944eb069c.2', 0, 24, '2026-11-27 21:34:37.975084+00');
INSERT INTO public.stored_offsets VALUES ('1fbcb64fe6e64273b465a21944eb069c.2', 1, 16, '2026-11-27 21:34:38.146866+00');
SELECT pg_catalog.setval('public.dead_letters_id_seq', 1, false);
ALTER TABLE ONLY public.control_bands
    ADD CONSTRAINT control_bands_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.control_overrides
    ADD CONSTRAINT control_overrides_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.control_pauses
    ADD CONSTRAINT control_pauses_pkey PRIMARY KEY (reason);
ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_log_id_log_partition_log_offset_key UNIQUE (log_id, log_partition, log_offset);
ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.log_events
    ADD CONSTRAINT log_events_pkey PRIMARY KEY (event_id);
ALTER TABLE ONLY public.probes
    ADD CONSTRAINT probes_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.stored_offsets
    ADD CONSTRAINT stored_offsets_pkey PRIMARY KEY (log_id, log_partition);
CREATE INDEX dead_letters_open ON public.dead_letters USING btree (tried_at NULLS FIRST, id) WHERE (replayed_at IS NULL);
CREATE INDEX log_events_correlation_id ON public.log_events USING btree (correlation_id);
CREATE INDEX log_events_event_time ON public.log_events USING brin (event_time) WITH (pages_per_range='32', autosummarize='on');
