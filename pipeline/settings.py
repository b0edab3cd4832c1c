"""Every setting: name, default, unit, limits and reason. The only module that reads the environment.

The object is frozen and passed in; see `Settings.from_environ`. A setting's name in the environment is its field's
name in capitals.
"""

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, get_type_hints
from urllib.parse import urlsplit

from pipeline.account import account_named, is_loopback
from pipeline.errors import SettingsError
from pipeline.names import LOG_FORMATS, LOG_LEVELS, SinkName
from pipeline.running import IS_CHECKOUT, nothing_to_ask, with_running_system
from pipeline.secrets import know_names, know_secret, know_url, url_problem
from pipeline.tls import TlsFiles
from pipeline.urls import SENTINEL_SCHEMES, has_redis_tls, hosts_of, query_of, scheme_of, sentinel_url

_LIBPQ: Final = re.compile(r"PG[A-Z]+")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def _setting(
    default: Any,
    why: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    when: str = "",
    is_secret: bool = False,
) -> Any:
    """A field with its explanation, inclusive limits or allowed words, and when to change it.

    A secret may also be in a file, which NAME_FILE names. It is left out of `repr`.
    """
    return dataclasses.field(
        default=default,
        repr=not is_secret,
        metadata={"why": why, "low": low, "high": high, "choices": choices, "when": when, "is_secret": is_secret},
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of all processes. The unit is the last part of a name."""

    # --- Where the servers are -----------------------------------------------------------------
    database_url: str = _setting(
        "postgresql://localhost:5432/sluice",
        "PostgreSQL, the sink",
        when="always in production. The user must own the tables, or have the rights of docs/links.md. Several hosts: "
        "postgresql://user@h1,h2/db?target_session_attrs=read-write",
        is_secret=True,
    )
    migrate_database_url: str = _setting(
        "",
        "The same database as another role, for `python -m pipeline migrate`: it owns the tables, and grants the user "
        "of DATABASE_URL its rights (docs/links.md). No other process needs it",
        when="the user of DATABASE_URL should not own the tables",
        is_secret=True,
    )
    redis_url: str = _setting(
        "redis://localhost:6379/0",
        "Redis for Celery's queues, the bucket and control state; with Sentinel "
        "redis+sentinel://h1:26379,h2:26379/NAME/0 (docs/links.md)",
        when="always in production. Use a separate server; no event is lost if it loses its memory",
        is_secret=True,
    )
    event_log_url: str = _setting(
        "redis://localhost:6380/0",
        "The event log: redis://… (a separate server: at its memory limit it refuses writes) or kafka://host:port,…; "
        "with TLS rediss://… or kafka+ssl://host:port,…; with Sentinel redis+sentinel://h1:26379,h2:26379/NAME/0 "
        "(docs/links.md)",
        when="always in production. Use Kafka if one Redis server is too small, or the log must survive its machine",
        is_secret=True,
    )
    event_sink_url: str = _setting(
        "",
        "Where events are stored; empty: in PostgreSQL (DATABASE_URL); file:///folder: in files of JSON Lines. "
        "PostgreSQL still keeps what operators set (docs/archive.md)",
        when="events are only archived, and all processes of Sluice run on one machine",
    )
    key_prefix: str = _setting(
        "sluice:",
        "Prefix of every Redis key, so that two systems can share a server",
        when="two systems use one Redis server",
    )

    # --- Links (docs/links.md) -----------------------------------------------------------------------------------
    kafka_ca_file: str = _setting(
        "",
        "kafka+ssl://: PEM file with the CA that signed the brokers' certificates; empty: the CAs of this machine",
        when="the brokers' certificates are signed by a CA of your own",
    )
    kafka_cert_file: str = _setting(
        "",
        "kafka+ssl://: PEM file with the certificate of Sluice, for brokers that want one",
        when="the brokers have ssl.client.auth=required",
    )
    kafka_key_file: str = _setting(
        "",
        "kafka+ssl://: PEM file with the key of KAFKA_CERT_FILE, without a passphrase; empty: it is in KAFKA_CERT_FILE",
        when="together with KAFKA_CERT_FILE",
    )
    kafka_sasl_mechanism: str = _setting(
        "",
        "How Sluice authenticates itself to the brokers; empty: it doesn't, or by its certificate",
        choices=("", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"),
        when="the brokers have a listener with SASL. PLAIN sends the password, and OAUTHBEARER an access token, so "
        "they need kafka+ssl://",
    )
    kafka_user: str = _setting(
        "", "User for PLAIN and SCRAM", when="together with KAFKA_SASL_MECHANISM; docs/links.md lists its rights"
    )
    kafka_password: str = _setting(
        "", "Password of KAFKA_USER", when="together with KAFKA_SASL_MECHANISM", is_secret=True
    )
    kafka_oauth_url: str = _setting(
        "",
        "OAUTHBEARER: the token endpoint of the identity provider, https://…; access tokens come by client credentials",
        when="KAFKA_SASL_MECHANISM=OAUTHBEARER, unless another program renews KAFKA_OAUTH_TOKEN_FILE",
    )
    kafka_oauth_client_id: str = _setting(
        "", "OAUTHBEARER: id of the client at KAFKA_OAUTH_URL", when="together with KAFKA_OAUTH_URL"
    )
    kafka_oauth_client_secret: str = _setting(
        "", "OAUTHBEARER: secret of KAFKA_OAUTH_CLIENT_ID", when="together with KAFKA_OAUTH_URL", is_secret=True
    )
    kafka_oauth_scope: str = _setting(
        "",
        "OAUTHBEARER: scopes to request at KAFKA_OAUTH_URL, separated by spaces; empty: the client's defaults",
        when="the identity provider or the brokers want one",
    )
    kafka_oauth_audience: str = _setting(
        "", "OAUTHBEARER: audience to request at KAFKA_OAUTH_URL", when="the identity provider wants one (Auth0)"
    )
    kafka_oauth_extensions: str = _setting(
        "",
        "OAUTHBEARER: extensions for the brokers: logicalCluster=lkc-1,identityPoolId=pool-1",
        when="the brokers want them (Confluent Cloud)",
    )
    kafka_oauth_ca_file: str = _setting(
        "",
        "OAUTHBEARER: PEM file with the CA that signed the certificate of KAFKA_OAUTH_URL; empty: the CAs of this "
        "machine",
        when="that certificate is signed by a CA of your own",
    )
    kafka_oauth_token_file: str = _setting(
        "",
        "OAUTHBEARER: file with an access token that another program renews, in place of KAFKA_OAUTH_URL; read for "
        "each connection",
        when="access tokens come in another way than by client credentials, as from Kubernetes or an agent of a cloud",
    )

    redis_ca_file: str = _setting(
        "",
        "rediss://, for both servers: PEM file with the CA that signed their certificates, beside the CAs of this "
        "machine",
        when="the certificates of Redis are signed by a CA of your own",
    )
    redis_cert_file: str = _setting(
        "",
        "rediss://: PEM file with the certificate of Sluice, for servers that want one",
        when="Redis has `tls-auth-clients yes`, its default",
    )
    redis_key_file: str = _setting(
        "",
        "rediss://: PEM file with the key of REDIS_CERT_FILE, without a passphrase; empty: it is in REDIS_CERT_FILE",
        when="together with REDIS_CERT_FILE",
    )
    redis_tls_unverified: bool = _setting(
        False,
        "rediss://: accept any certificate. Then TLS protects from reading along, not from a server that pretends to "
        "be Redis",
        when="never in production",
    )

    redis_sentinel_user: str = _setting(
        "",
        "redis+sentinel://: user of the sentinels; those of Redis are in the URL",
        when="the sentinels have users",
    )
    redis_sentinel_password: str = _setting(
        "",
        "redis+sentinel://: password of the sentinels",
        when="the sentinels have `requirepass`, or users",
        is_secret=True,
    )

    # --- Log lines -------------------------------------------------------------------------------
    log_level: str = _setting(
        "INFO",
        "The lowest level that is logged; DEBUG names each request and batch",
        choices=LOG_LEVELS,
        when="DEBUG to follow an event through the system, or to find a defect",
    )
    log_format: str = _setting(
        "human",
        "Lines for people, or one JSON object a line",
        choices=LOG_FORMATS,
        when="json if a collector reads the lines",
    )

    # --- Ingest: HTTP ------------------------------------------------------------------------------
    ingest_host: str = _setting(
        "127.0.0.1",
        "Address that ingest listens on. On another one than the loopback address, it needs INGEST_KEYS, "
        "INGEST_TLS_CLIENT=required or INGEST_OPEN",
        when="0.0.0.0 in a container, or if clients are on other machines",
    )
    ingest_port: int = _setting(
        8080, "Port of ingest, shared by all its processes", low=1, high=65535, when="another program has the port"
    )
    ingest_tls_cert: str = _setting(
        "",
        "File with ingest's certificate and its chain (PEM), for HTTPS; empty: plain HTTP. Read again when it changes",
        when="clients reach ingest over a network, and no proxy before it speaks TLS",
    )
    ingest_tls_key: str = _setting(
        "",
        "File with the private key of INGEST_TLS_CERT (PEM, without a password); empty: the key is in that file",
        when="together with INGEST_TLS_CERT",
    )
    ingest_tls_client: str = _setting(
        "off",
        "Certificates of clients: off: none is asked for; optional: a client may have one; required: connections "
        "without one are refused. The name in it is the client's account; with INGEST_KEYS only for requests without a "
        "key (INGEST_TLS_CLIENT_AS_KEY). optional and required need TLS 1.3 (docs/client-certificates.md)",
        choices=("off", "optional", "required"),
        when="clients have certificates of an authority of your own",
    )
    ingest_tls_client_ca: str = _setting(
        "",
        "File with the authorities that sign clients' certificates (PEM), and with lists of revoked ones if there are "
        "any. Read again when it changes",
        when="together with INGEST_TLS_CLIENT",
    )
    ingest_tls_client_as_key: bool = _setting(
        False,
        "With INGEST_KEYS: a client's certificate stands for an API key in requests that have none",
        when="clients with a certificate should not need a key as well",
    )
    ingest_url: str = _setting(
        "",
        "URL of ingest for the client; empty: http:// or https:// with INGEST_HOST and INGEST_PORT",
        when="the client of this package runs on another machine than ingest",
    )
    ingest_cors_origins: str = _setting(
        "",
        "Origins whose pages may send events from a browser, with commas between, as in https://shop.example; *: every "
        "origin; empty: none (docs/browsers.md)",
        when="scripts of web pages send events",
    )
    ingest_metrics_port: int = _setting(
        0,
        "Port of one ingest process' own metrics; 0: none beside /metrics",
        low=0,
        high=65535,
        when="several ingest processes share INGEST_PORT: give each its own port, so that Prometheus can scrape each",
    )
    body_bytes_max: int = _setting(
        1 << 20,
        "Largest body, after decompression",
        low=1024,
        high=64 << 20,
        when="clients send larger batches. A body needs up to four times its size in memory",
    )
    body_events_max: int = _setting(
        1000,
        "Most events in one body",
        low=1,
        high=100_000,
        when="clients send larger batches. The bucket admits a body as a whole",
    )
    protocol_body_bytes_max: int = _setting(
        16 << 20,
        "Largest body in another protocol than Sluice's own, after inflating",
        low=1024,
        high=256 << 20,
        when="a shipper has larger batches, and can't be told to send smaller ones",
    )
    protocol_body_events_max: int = _setting(
        20_000,
        "Most events in one body in another protocol than Sluice's own",
        low=1,
        high=1_000_000,
        when="a shipper has larger batches; one of them passes the bucket as a whole",
    )
    event_time_min_ms: int = _setting(
        100_000_000_000,
        "Earliest `timestamp` of an event, epoch milliseconds: 1973; an earlier one was most likely sent in seconds",
        low=0,
        high=253_402_300_799_999,
        when="0 if events are really from 1970 to 1973",
    )
    bodies_bytes_max: int = _setting(
        64 << 20,
        "Bytes of bodies, inflated ones included, that one ingest process holds; above it, bodies over 16 KiB get 503",
        low=1 << 20,
        high=64 << 30,
        when="many clients send large bodies on slow lines. Events need up to four times these bytes for a moment. "
        "Bodies up to 16 KiB come beside it: at most 16 KiB for each of INGEST_CONNECTIONS_MAX",
    )
    hard_bodies_bytes_max: int = _setting(
        16 << 20,
        "Bytes of slow bodies (invalid, or with rare content) that wait to be parsed; above it 503",
        low=1 << 20,
        high=1 << 30,
        when="BODY_BYTES_MAX is raised: there should be room for several of the largest bodies",
    )
    request_seconds_max: float = _setting(
        10.0,
        "Total time in which headers and body must arrive; a slower client is disconnected",
        low=0.1,
        high=600,
        when="clients on slow lines get 408: raise it. Slow requests are used as an attack: lower it",
    )
    ingest_connections_max: int = _setting(
        2000,
        "Open connections of one ingest process; further ones get a 503",
        low=1,
        high=1_000_000,
        when="clients get 503 for connections. Raise the limit of open files too",
    )
    page_viewers_max: int = _setting(
        20,
        "Live pages that one ingest process serves at once; further ones show that there are too many",
        low=0,
        high=1000,
        when="0 to have no stream. Each open page costs one message a second",
    )
    stop_seconds_max: float = _setting(
        10.0,
        "Time for running requests to end and the appender to be flushed at shutdown",
        low=0.1,
        high=600,
        when="the platform kills processes sooner, or requests take longer",
    )

    # --- Ingest: operators -----------------------------------------------------------------------------
    operator_port: int = _setting(
        0,
        "Port for operators: live page, health, metrics, /docs. INGEST_PORT then has only what clients send to, and "
        "/healthz and /readyz (docs/operators.md). 0: all of them are on INGEST_PORT",
        low=0,
        high=65535,
        when="clients on other machines reach INGEST_PORT",
    )
    operator_host: str = _setting(
        "127.0.0.1",
        "Address of OPERATOR_PORT. On another one than the loopback address, it needs OPERATOR_PASSWORD or "
        "OPERATOR_OPEN",
        when="operators or Prometheus are on other machines",
    )
    operator_password: str = _setting(
        "",
        "Password for what operators see: HTTP's Basic with any user, or Bearer; at least 12 characters",
        when="others than the programs of this machine reach OPERATOR_PORT, or INGEST_PORT without an OPERATOR_PORT",
        is_secret=True,
    )
    operator_open: bool = _setting(
        False,
        "Show operators' addresses without a password to everybody who reaches them",
        when="a network or a proxy in front keeps strangers away",
    )
    runbooks_url: str = _setting(
        "",
        "Where the runbooks are published, as in https://docs.example/sluice/runbooks: the page and status link there; "
        "empty: ingest serves its own copy at /runbooks, beside the page",
        when="your operators keep runbooks of their own, or read the documentation as a site",
    )
    page_urls: str = _setting(
        "",
        "Links at the foot of the live page: `NAME=URL` with commas between, as in "
        "Grafana=https://grafana.example,Flower=http://127.0.0.1:5555. run.sh fills in what it runs",
        when="operators open Grafana, Prometheus, Flower or a documentation of yours from the page",
    )

    prometheus_url: str = _setting(
        "",
        "The Prometheus that scrapes this system, as ingest reaches it, such as http://127.0.0.1:9090: with it, the "
        "live page has charts of 6 hours and 7 days. run.sh fills it in, if it runs one",
        when="a Prometheus runs, and operators want longer charts than 15 minutes on the page",
    )

    # --- Ingest: API keys ----------------------------------------------------------------------------
    ingest_keys: bool = _setting(
        False,
        "Accept events only with an API key (docs/keys.md). `python -m tasks.keys create NAME` makes one",
        when="others than the programs of this machine reach ingest",
    )
    ingest_open: bool = _setting(
        False,
        "Accept events without an API key from everybody who reaches INGEST_HOST",
        when="a network or a proxy in front keeps strangers away",
    )
    ingest_key: str = _setting(
        "",
        "API key that the client of this package sends",
        when="INGEST_KEYS is on where INGEST_URL leads to",
        is_secret=True,
    )
    api_keys_max: int = _setting(
        1000,
        "API keys at once",
        low=1,
        high=100_000,
        when="more clients need keys of their own. Each process reads all of them after each change, 300 bytes each",
    )

    # --- Ingest: accounts ----------------------------------------------------------------------------
    trusted_proxies: str = _setting(
        "",
        "Addresses and networks of reverse proxies, with commas between, as in 10.0.0.5,192.168.1.0/24. Then the "
        "client's address is the last one in FORWARDED_FIELD that is not theirs, else the address of the connection",
        when="ingest runs behind a proxy: otherwise all clients of the proxy are one account",
    )
    forwarded_field: str = _setting(
        "x-forwarded-for",
        "The header field to which these proxies add the address of their client. Any other field may be forged",
        choices=("x-forwarded-for", "forwarded"),
        when="the proxies set Forwarded (RFC 7239)",
    )

    admission_shares: bool = _setting(
        False,
        "While clients offer more than the rate, divide it: each account gets what it offers, up to a share that is "
        "the same for all (max-min). Otherwise an account that sends more gets more",
        when="several clients share the system, and one that sends too much must not be at the expense of the others",
    )
    account_limits: str = _setting(
        "",
        "Events/s that accounts are admitted at most, also without shortage and without shares: ADDRESS=NUMBER with "
        "commas between. An account is an IPv4 address, or a /64 network of IPv6",
        when="a client has a contract for a rate, or sends too much by mistake",
    )
    account_weights: str = _setting(
        "",
        "The shares of accounts as a multiple of that of all others: ADDRESS=NUMBER with commas between, 0.01 to 100",
        when="one account is many clients, or is more important than the others",
    )
    account_limits_max: int = _setting(
        200,
        "Accounts for which operators can set a limit while the system runs (`control set_account_limit`)",
        low=1,
        high=10_000,
        when="more clients have a contract for a rate. Every process reads all of them once a second, 200 bytes each",
    )
    accounts_max: int = _setting(
        128,
        "Accounts that one ingest process counts by themselves: the heaviest. All others are counted together, and are "
        "never held back to a share",
        low=8,
        high=1000,
        when="more accounts than that are above their share at once; each costs 30 bytes a second of each process",
    )

    # --- Ingest: append ------------------------------------------------------------------------------
    append_group_events_max: int = _setting(
        500,
        "Most events of one append; larger appends block the server for longer",
        low=1,
        high=10_000,
        when="rarely. `./bench.sh --only M1,M2` shows its effect",
    )
    append_group_seconds_max: float = _setting(
        0.002,
        "How long the first event of a group waits for further events",
        low=0.0,
        high=1.0,
        when="lower for less latency at low load, higher for less CPU time at high load",
    )
    append_buffer_events_max: int = _setting(
        10_000,
        "Events that wait for the log in one process; above it 503",
        low=1,
        high=1_000_000,
        when="clients get 503 during short delays of the log: more memory, fewer refusals",
    )
    append_buffer_bytes_max: int = _setting(
        32 << 20,
        "Bytes that wait for the log in one process; above it 503",
        low=1 << 20,
        high=1 << 30,
        when="as above, if events are large",
    )
    append_seconds_max: float = _setting(
        1.0,
        "How long a request waits for its append; then 503",
        low=0.05,
        high=30,
        when="the log is slow or far away, and clients should wait instead of repeating",
    )

    # --- Event log ---------------------------------------------------------------------------------------
    log_partitions: int = _setting(
        4,
        "Partitions of a new log; at most this number of drains run at once, and at most DRAINS_MAX",
        low=1,
        high=256,
        when="before the first start, if the sink can serve more drains at once. A log keeps its number of partitions",
    )
    log_topic: str = _setting("sluice-events", "Kafka topic", when="two systems use one Kafka cluster")
    log_trim: bool = _setting(
        True,
        "Redis Streams: delete records after they are stored",
        when="no, to read stored events in the log while you look for a defect. Its memory then only grows",
    )
    log_entries_max: int = _setting(
        2_000_000,
        "Redis Streams without maxmemory: most records of all partitions; above it, appends are refused",
        low=1,
        high=1_000_000_000,
        when="maxmemory is not set, and the machine has memory for a longer outage",
    )
    log_replicas_min: int = _setting(
        0,
        "Redis Streams: replicas that must have an event, also on disk, before it is accepted; with fewer, events "
        "are refused (docs/replication.md)",
        low=0,
        high=9,
        when="the log's Redis has replicas, and accepted events must survive a failover to one of them",
    )
    kafka_replication: int = _setting(
        1,
        "Replicas of the topic. From 2 on, an accepted event is on all but one of them, and at least 2. A topic with "
        "fewer replicas, or a lower min.insync.replicas, is refused (docs/replication.md)",
        low=1,
        high=9,
        when="3 in a cluster, before the topic is created: accepted events survive the loss of a broker",
    )
    kafka_client: str = _setting(
        "kafka-python",
        "Library that appends to Kafka. confluent: confluent-kafka, an extra of the package; it takes less CPU time, "
        "and its own retries store no event twice (docs/links.md)",
        choices=("kafka-python", "confluent"),
        when="ingest's CPU is the limit. With many partitions on one broker an append may take longer: measure it",
    )
    kafka_group: str = _setting(
        "sluice",
        "Kafka consumer group to which stored offsets are committed, so that Kafka's tools show them",
        when="two systems use one topic",
    )
    kafka_fetch_bytes_max: int = _setting(
        4 << 20,
        "Bytes that one read prefetches, for each partition that a process has drained",
        low=1 << 20,
        high=256 << 20,
        when="batches are far larger, or memory is scarce: each process needs it for each partition",
    )
    log_keep_hours: int = _setting(
        0,
        "Kafka: records are deleted from the topic this many hours after they were stored, never others; 0: they are "
        "kept for ever. The topic's own retention stays off (docs/retention.md)",
        low=0,
        high=87_600,
        when="the topic must not grow for ever. Keep it above the longest time after which you would restore "
        "PostgreSQL from a backup, and above what other consumers of the topic need",
    )
    kafka_retention_accepted: bool = _setting(
        False,
        "Accept an existing topic that deletes records by age or size, even if they are not stored yet",
        when="the topic belongs to another team, and its retention is longer than any outage",
    )

    # --- Drain -----------------------------------------------------------------------------------------------
    drain_batch_records_max: int = _setting(
        5000,
        "Most records of one transaction; after a crash they are stored again",
        low=1,
        high=100_000,
        when="lower if a batch takes PostgreSQL longer than SINK_CALL_SECONDS_MAX, higher for fewer commits",
    )
    drain_batch_bytes_max: int = _setting(
        8 << 20,
        "Most bytes of one transaction; PostgreSQL must store them within SINK_CALL_SECONDS_MAX",
        low=1 << 16,
        high=256 << 20,
        when="as above, if events are large",
    )
    drain_careful_records_max: int = _setting(
        500,
        "Most records of one transaction after PostgreSQL refused some of them; each record is tried alone",
        low=1,
        high=100_000,
        when="rarely. Lower it if triggers or constraints need milliseconds for each row",
    )
    drain_run_seconds_max: float = _setting(
        10.0,
        "Length of one drain task, up to twice as long without records; at its end it sends the hint for the next one",
        low=0.1,
        high=300,
        when="lower to stop workers sooner. Each run costs a task",
    )
    drains_max: int = _setting(
        8,
        "Drains that run at once, of all workers; with more partitions, each drains several in turn. A drain needs a "
        "process and a connection to PostgreSQL. Workers need two processes more than drains",
        low=1,
        high=256,
        when="the log has more partitions than this, and PostgreSQL has the CPU and the connections for more drains; "
        "the same for every process",
    )
    drain_poll_seconds: float = _setting(
        1.0,
        "How long one read waits for new records, and how soon a pause ends a drain; on Redis three times as long "
        "while its worker reads the pauses for it. None is stored after a pause in any case",
        low=0.01,
        high=10,
        when="rarely. Reads return as soon as records arrive",
    )
    drain_hard_seconds_max: float = _setting(
        40.0,
        "A drain task that runs longer is killed, because it must be frozen",
        low=1,
        high=3600,
        when="together with DRAIN_RUN_SECONDS_MAX; keep it well above that",
    )
    drain_stalled_seconds_max: float = _setting(
        15.0,
        "The controller ends a database session that holds a partition with lag for this time without progress",
        low=1,
        high=3600,
        when="sessions of a healthy but slow PostgreSQL are ended: raise it",
    )
    poison_run_records_max: int = _setting(
        200,
        "Dead letters in consecutive batches above POISON_RATIO_MAX after which consumption of the partition pauses",
        low=1,
        high=100_000,
        when="bad records of one producer should pause the partition sooner, or later",
    )
    poison_ratio_max: float = _setting(
        0.5,
        "Share of dead letters in a batch above which the batch counts for POISON_RUN_RECORDS_MAX",
        low=0.01,
        high=1.0,
        when="together with POISON_RUN_RECORDS_MAX",
    )
    poison_condemned_records_max: int = _setting(
        10,
        "Dead letters for records that fail each time with an error of the database's set-up (a broken trigger). One "
        "more pauses their partition. Ten thousand good records lower the count by one",
        low=1,
        high=100_000,
        when="a trigger or function is known to fail for a few records and can't be fixed",
    )
    sink_connect_seconds_max: int = _setting(
        2, "Time to connect to PostgreSQL, for each host of DATABASE_URL", low=1, high=60, when="PostgreSQL is far away"
    )
    sink_call_seconds_max: float = _setting(
        2.0,
        "Time without an answer of PostgreSQL after which the connection is closed (a frozen server never answers)",
        low=0.1,
        high=60,
        when="a healthy PostgreSQL is sometimes slower. A higher value opens the breaker later",
    )

    # --- Control loop ------------------------------------------------------------------------------------------
    rate_policy: str = _setting(
        "bands",
        "What the admitted rate follows. bands: the lag in events, between LAG_DEGRADED and LAG_CRITICAL. drain_time: "
        "what the sink stores; it changes the defaults of RATE_MAX to 50000 and of REGULATE_SECONDS to 1",
        choices=("bands", "drain_time"),
        when="drain_time if the capacity of the sink is unknown or changes. Set it for every process",
    )
    rate_policy_shadow: str = _setting(
        "",
        "A second rate policy that decides beside the first and admits nothing: metrics and page show its rate",
        choices=("", "bands", "drain_time"),
        when="before you change RATE_POLICY, to see what the other policy would do with the same load",
    )
    drain_target_seconds: float = _setting(
        2.0,
        "drain_time: time within which the events that wait in the log should be stored",
        low=0.2,
        high=60,
        when="higher if batches take seconds. Lower it to store events sooner, with less throughput",
    )
    rate_max: float = _setting(
        1000.0,
        "bands: admitted rate at low lag, events/s. drain_time: the highest rate, only for safety (50000)",
        low=1,
        high=10_000_000,
        when="first of all, to the rate that the sink can store for hours, minus a reserve",
    )
    rate_min: float = _setting(
        100.0,
        "Admitted rate at high lag and while the breaker is open, events/s",
        low=1,
        high=10_000_000,
        when="to a rate that the sink can store at its slowest, so that a backlog still shrinks",
    )
    lag_degraded: int = _setting(
        10_000,
        "Lag from which the rate falls, events",
        low=1,
        high=1_000_000_000,
        when="together with RATE_MAX. The default is ten seconds of the default rate",
    )
    lag_critical: int = _setting(
        50_000,
        "Lag above which the rate is at its lowest, events",
        low=1,
        high=1_000_000_000,
        when="together with LAG_DEGRADED, to the largest lag that is acceptable",
    )
    regulate_seconds: float = _setting(
        5.0,
        "Period of the control loop; 1 with RATE_POLICY=drain_time",
        low=0.1,
        high=300,
        when="lower if the lag oscillates. After three periods without a rate, health reports a silent controller",
    )
    rate_hold_seconds: float = _setting(
        30.0,
        "Time for which the last rate holds while the lag is unknown or the controller is silent; then it halves",
        low=0.1,
        high=86_400,
        when="clients may be served at the last rate for a longer or shorter time",
    )
    rate_halving_seconds: float = _setting(
        5.0,
        "After that, the rate halves each time this period has passed, down to RATE_MIN",
        low=0.1,
        high=86_400,
        when="together with RATE_HOLD_SECONDS, for a slower or faster fall",
    )
    rate_hold_periods: int = _setting(
        0,
        "RATE_HOLD_SECONDS in periods of the control loop, as earlier versions count; the rate then halves each period",
        low=0,
        high=1000,
        when="never. With 0, RATE_HOLD_SECONDS and RATE_HALVING_SECONDS decide; the next version ignores this setting",
    )
    no_progress_seconds_max: float = _setting(
        30.0,
        "Health is critical if a partition with events has stored none for this time and is not paused",
        low=1,
        high=3600,
        when="a batch may take longer. The controller measures it once in REGULATE_SECONDS",
    )
    clock_difference_seconds_max: float = _setting(
        1.0,
        "Health is degraded if the clock of a process or of PostgreSQL differs more from the control store's",
        low=0.1,
        high=86_400,
        when="the clocks of hosts can't be synchronised better. No decision depends on it",
    )
    refused_ratio_max: float = _setting(
        0.05,
        "Health is degraded if a larger share of the offered events was refused",
        low=0.0,
        high=1.0,
        when="refusals are normal in your system; 1 never reports them",
    )
    refused_seconds: float = _setting(
        60.0,
        "Time over which REFUSED_RATIO_MAX is measured",
        low=1,
        high=600,
        when="lower to report short bursts, higher to ignore them",
    )
    burst_seconds: float = _setting(
        1.0,
        "Tokens of a full bucket, in seconds of the rate",
        low=0.01,
        high=60,
        when="clients send bursts that are refused, although the sink could store them",
    )
    lease_seconds: float = _setting(
        0.03,
        "Tokens that an ingest process takes from the bucket at once, in seconds of the rate",
        low=0.001,
        high=1,
        when="many ingest processes share a low rate: only one process can use the tokens of a lease",
    )
    admission_levels: bool = _setting(
        False,
        "Refuse less important events first: DEBUG and TRACE, then INFO, then WARN; ERROR and FATAL last. The highest "
        "severity of a body counts, or its header Priority (docs/adr/admission-levels.md)",
        when="clients send more than can be stored, and some events matter more; set it for every ingest process",
    )
    ingest_processes_max: int = _setting(
        8,
        "Most ingest processes of all hosts together. Without Redis, one that has just started admits this part of the "
        "rate, or of RATE_MIN if it knows no rate",
        low=1,
        high=100_000,
        when="more processes run: without Redis, all together would admit more than RATE_MIN. Lower it if fewer run",
    )
    control_events_max: int = _setting(
        1000,
        "Control events kept",
        low=10,
        high=1_000_000,
        when="you want a longer history; an event needs about 300 bytes",
    )
    breaker_failures_max: int = _setting(
        5,
        "Consecutive failures of the sink that open the breaker",
        low=1,
        high=1000,
        when="an unstable network opens the breaker too often",
    )
    probe_seconds: float = _setting(
        2.0,
        "Period of the prober while the breaker is open",
        low=0.1,
        high=300,
        when="lower to resume sooner, higher for less load on a PostgreSQL that is starting",
    )
    probe_wait_seconds_max: float = _setting(
        30.0,
        "The longest wait before a probe, if the breaker opened repeatedly and no event was stored between",
        low=0.1,
        high=3600,
        when="lower to resume sooner after a long time in which small writes succeeded and batches failed",
    )
    hint_seconds: float = _setting(
        1.0,
        "Period of the fallback hints for drains while records wait; else they come every 5 s",
        low=0.1,
        high=60,
        when="rarely. It only matters if a drain's own hint was lost",
    )
    queue_untaken_seconds_max: float = _setting(
        5.0,
        "A worker that is not paused and receives no waiting message for this time reconnects to its queue",
        low=4,  # its event loop may wait 3 s for a remote command
        high=3600,
        when="rarely. After the same time again the worker exits, and its supervisor restarts it",
    )
    pause_reconcile_seconds: float = _setting(
        5.0,
        "How often a worker's event loop checks the thread that follows the pauses. That one compares the consumer "
        "with them at each change, and once a second",
        low=0.05,
        high=60,
        when="rarely. A worker follows a pause at once, and corrects what it missed after a second",
    )

    override_seconds: float = _setting(
        600.0,
        "Duration of an override if the command names none",
        low=1,
        high=86_400,
        when="rarely. Name the duration in the command",
    )
    override_seconds_max: float = _setting(
        86_400.0,
        "The longest duration of an override",
        low=1,
        high=31_536_000,
        when="a limit is planned for longer. Changing RATE_MAX is usually better",
    )
    override_rate_max: float = _setting(
        10_000.0,
        "The highest rate of an override; RATE_MAX if that is higher",
        low=1,
        high=10_000_000,
        when="together with RATE_MAX, to the highest rate that the event log accepts",
    )

    # --- Retention ---------------------------------------------------------------------------------------------
    retention_days: int = _setting(
        0,
        "Events are deleted this many days after PostgreSQL stored them; 0: they are kept for ever. A repeat of a "
        "deleted event is stored again, unless EVENTS_BY_DAY",
        low=0,
        high=36_500,
        when="the table must not grow for ever. Keep it above the longest time after which a client still repeats an "
        "event; see docs/retention.md",
    )
    events_by_day: bool = _setting(
        False,
        "Partition log_events by day: RETENTION_DAYS then drops whole days, and ids stay when their events go. Set it, "
        "and run `python -m pipeline migrate`. There is no way back",
        when="so many events expire that their deletion is too slow, or the disk must get their room back; see "
        "docs/retention.md",
    )
    dedup_days: int = _setting(
        0,
        "With EVENTS_BY_DAY: an eventId is kept this many days, so that a repeat is not stored again; 0: for ever. Not "
        "below RETENTION_DAYS",
        low=0,
        high=36_500,
        when="the table event_ids must not grow for ever",
    )
    dead_letter_days: int = _setting(
        0,
        "Dead letters are deleted this many days after they were written, also those that were never stored; 0: they "
        "are kept for ever",
        low=0,
        high=36_500,
        when="nobody will look at older ones, or their content must not be kept for longer",
    )
    retention_seconds: float = _setting(
        10.0,
        "Period in which expired rows are deleted, in small steps for up to a quarter of it",
        low=0.1,
        high=20,  # a tick reports its problem, which is shown for 30 s; and a task that runs for 30 s is killed
        when="rarely",
    )
    retention_rows_max: int = _setting(
        2000,
        "Most rows that one step deletes; one transaction",
        low=1,
        high=100_000,
        when="lower if a step takes PostgreSQL longer than half a second",
    )

    # --- Metrics -----------------------------------------------------------------------------------------------
    metrics_host: str = _setting(
        "127.0.0.1",
        "Address on which workers, and ingest processes with a port of their own, serve metrics",
        when="0.0.0.0 in a container: Prometheus runs in another one",
    )
    worker_metrics_port: int = _setting(
        0,
        "Port on which a worker serves metrics; the control worker also serves those of the whole system; 0: none",
        low=0,
        high=65535,
        when="always with Prometheus. Each worker of a machine needs its own port",
    )
    measure_seconds: float = _setting(
        15.0,
        "Period in which size, connections and open dead letters are read from PostgreSQL",
        low=1,
        high=50,
        when="rarely. These metrics may be this old",
    )
    watched_paths: str = _setting(
        "",
        "Folders, separated by commas; the control worker shows the free space of their disks",
        when="the control worker can see the disks of the servers",
    )

    # --- Celery ----------------------------------------------------------------------------------------------------
    visibility_timeout_seconds: int = _setting(
        60,
        "Celery's broker visibility time-out",
        low=5,
        high=86_400,
        when="together with DRAIN_HARD_SECONDS_MAX; keep it above that",
    )
    signing_key_file: str = _setting(
        "",
        "Workers, Beat and operators: PEM file with the key that signs tasks and remote commands; empty: nothing is "
        "signed. `python -m tasks.signing create NAME FOLDER` makes one",
        when="others than Sluice and its operators may reach REDIS_URL; together with users of Redis "
        "(docs/redis-acl.md)",
    )
    signing_cert_file: str = _setting(
        "", "PEM file with the certificate of SIGNING_KEY_FILE", when="together with SIGNING_KEY_FILE"
    )
    signing_cert_folder: str = _setting(
        "",
        "Folder with the certificates of all that may send tasks and remote commands, and nothing else",
        when="together with SIGNING_KEY_FILE",
    )

    def __post_init__(self) -> None:
        problems = [*_limit_problems(self), *_cross_problems(self)]
        if problems:
            raise SettingsError("invalid settings: " + "; ".join(problems))

    @classmethod
    def for_commands(cls) -> "Settings":
        """The settings for a command in a shell: if the shell has no addresses, those of the system that runs here.

        Raises SettingsError, as `from_environ` does.
        """
        return cls.from_environ(with_running_system(os.environ))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; a variable that is unset or empty takes its default.

        Raises SettingsError, which names every wrong variable, its value and the allowed values.
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        problems: list[str] = []
        kinds = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            name, kind = field.name, kinds[field.name]
            text = source.get(name.upper(), "").strip()
            path = source.get(f"{name.upper()}_FILE", "").strip() if field.metadata["is_secret"] else ""
            try:
                if path:
                    text = _secret_of(path, is_given=bool(text))
                if text and field.metadata["is_secret"]:
                    _hide_from_now_on(name, text)
                elif name in _NAMES:
                    know_names(text or str(field.default))
                if text:
                    values[name] = _parse(text, kind)
            except _FileError as error:
                problems.append(f"{name.upper()}_FILE={path!r} {error}")
            except ValueError:
                problems.append(f"{name.upper()}={text!r} is not {_KIND_WORDS[kind]}")
        for name, value in _DEFAULTS_OF_POLICY.get(values.get("rate_policy", ""), {}).items():
            values.setdefault(name, value)
        if problems:
            raise SettingsError("invalid settings: " + "; ".join(problems))
        return cls(**values)

    def of_shadow(self) -> "Settings":
        """The settings for the policy of RATE_POLICY_SHADOW: a RATE_MAX that was left out is that policy's own."""
        own, other = (_DEFAULTS_OF_POLICY.get(name, {}) for name in (self.rate_policy, self.rate_policy_shadow))
        default = Settings.rate_max
        is_default = self.rate_max == own.get("rate_max", default)
        rate_max = other.get("rate_max", default) if is_default else self.rate_max
        return dataclasses.replace(self, rate_policy=self.rate_policy_shadow, rate_policy_shadow="", rate_max=rate_max)

    @property
    def log_scheme(self) -> str:
        """`redis` or `kafka`: the event log's kind, with TLS and sentinels or without."""
        scheme = scheme_of(self.event_log_url)
        return _KINDS.get(scheme, scheme)

    @property
    def log_copies(self) -> int:
        """On how many servers an accepted event is in the event log; 1: a single copy."""
        if self.log_scheme != "kafka":
            return 1 + self.log_replicas_min
        if self.kafka_replication < _REPLICATED_FROM:
            return 1
        # One broker may be missing while events are accepted. With 2 replicas none may: one copy is not replicated.
        return max(_REPLICATED_FROM, self.kafka_replication - 1)

    @property
    def kafka_tls(self) -> TlsFiles | None:
        """The files for TLS with Kafka; None: without TLS."""
        if scheme_of(self.event_log_url) != "kafka+ssl":
            return None
        return TlsFiles("KAFKA", self.kafka_ca_file, self.kafka_cert_file, self.kafka_key_file)

    @property
    def redis_tls(self) -> TlsFiles:
        """The files for TLS with Redis, for URLs with rediss://."""
        return TlsFiles("REDIS", self.redis_ca_file, self.redis_cert_file, self.redis_key_file)

    @property
    def ingest_scheme(self) -> str:
        """`https` if ingest has a certificate, else `http`."""
        return "https" if self.ingest_tls_cert else "http"

    def ready_url(self, ingest_url: str = "") -> str:
        """Where to ask whether ingest is ready: the ingest at `ingest_url`, by default that of this machine.

        If clients need a certificate there, it is OPERATOR_PORT instead: who asks has none.
        """
        if self.ingest_tls_client == "required":
            ingest_url = ""
            host, port = self.operator_host, self.operator_port
        else:
            host, port = self.ingest_host, self.ingest_port
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # asked
        shown = f"[{host}]" if ":" in host else host
        return f"{ingest_url.rstrip('/') or f'{self.ingest_scheme}://{shown}:{port}'}/readyz"

    @property
    def operator_connections_max(self) -> int:
        """Open connections of OPERATOR_PORT of one process: those of live pages, and others that soon end."""
        return self.page_viewers_max + OPERATOR_CONNECTIONS_BESIDE_PAGES

    @property
    def sink_name(self) -> SinkName:
        """The name of the sink that is in use, for messages."""
        return SinkName.ARCHIVE if self.event_sink_url else SinkName.POSTGRESQL


# Other defaults for a rate policy: for values that the environment leaves out.
_DEFAULTS_OF_POLICY: Final[dict[str, dict[str, float]]] = {
    "drain_time": {"rate_max": 50_000.0, "regulate_seconds": 1.0}
}

# A folder with an absolute path, on this machine.
_FOLDER_URL: Final = re.compile(r"file://(localhost)?/[^?#]+")
_LINK: Final = re.compile(r"https?://[^\s/?#]+\S*")
_WEB_URL: Final = re.compile(r"https?://[^\s/?#]+[^\s?#]*")  # names of pages are appended
# The allowed schemes of each server's URL. REDIS_URL is Celery's broker too.
_SCHEMES: Final = {
    "database_url": ("postgresql", "postgres"),
    "migrate_database_url": ("postgresql", "postgres"),
    "redis_url": ("redis", "rediss", *SENTINEL_SCHEMES),
    "event_log_url": ("redis", "rediss", *SENTINEL_SCHEMES, "kafka", "kafka+ssl"),
}
_KINDS: Final = {"rediss": "redis", **dict.fromkeys(SENTINEL_SCHEMES, "redis"), "kafka+ssl": "kafka"}
_KIND_WORDS: Final[dict[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "yes or no",
    str: "text",
}


def no_system_to_ask() -> str | None:
    """The reason why a command in this shell has no system to read, in one line; None if it has one."""
    return nothing_to_ask(os.environ)


_NO_DOCSTRINGS: Final = 2  # PYTHONOPTIMIZE from which on there are none

# What libpq may still take from the environment: a password that should not be part of a URL.
_LIBPQ_KEPT: Final = frozenset({"PGPASSWORD", "PGPASSFILE"})


def ignore_variables_of_others() -> str | None:
    """Remove variables that would change what this process does; returns a line that names them.

    Another application's CELERY_BROKER_URL in the shell would send our tasks to its broker, and the prefix CELERY_ sets
    each option of the command line. PGSERVICE, PGHOSTADDR or PGOPTIONS would select another database than DATABASE_URL,
    or change how it behaves. PROMETHEUS_MULTIPROC_DIR would keep metrics in files of another program. Sluice takes all
    that it needs from its settings or the command line.
    """
    found = sorted(
        name
        for name in os.environ
        if name.startswith("CELERY_")
        or (_LIBPQ.fullmatch(name) and name not in _LIBPQ_KEPT)
        or name.upper() == "PROMETHEUS_MULTIPROC_DIR"
    )
    for name in found:
        del os.environ[name]
    if not found:
        return _removed_texts()
    told = f"ignored, since Sluice's settings decide (docs/settings.md): {', '.join(found)}"
    if any(_LIBPQ.fullmatch(name) for name in found):
        told += "; settings of PostgreSQL's client belong into DATABASE_URL, as in ?sslmode=require"
    return "; ".join(filter(None, (told, _removed_texts())))


def _removed_texts() -> str | None:
    """The line about a Python that removed all docstrings: default messages of errors come from them."""
    if sys.flags.optimize < _NO_DOCSTRINGS:
        return None
    return f"PYTHONOPTIMIZE={sys.flags.optimize} removes the texts of messages: unset it"


# Settings with names that messages have: a password that is one of them is hidden only by its position.
_NAMES: Final = frozenset(
    {"kafka_user", "kafka_oauth_client_id", "kafka_oauth_scope", "redis_sentinel_user", "log_topic", "kafka_group",
     "key_prefix", "ingest_host", "operator_host", "metrics_host"}
)  # fmt: skip


def _hide_from_now_on(name: str, text: str) -> None:
    """Keep the password in a secret setting out of all messages, also if the setting is refused."""
    (know_url if name.endswith("_url") else know_secret)(text)


def _parse(text: str, kind: type) -> Any:
    """A setting's value from its text; raises ValueError if the text is no such value."""
    if kind is bool:
        lowered = text.lower()
        if lowered not in _TRUE | _FALSE:
            raise ValueError(text)
        return lowered in _TRUE
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    return text


class _FileError(Exception):
    """The file of a secret can't be used."""


def _secret_of(path: str, *, is_given: bool) -> str:
    """The secret in a file: its only line. Raises _FileError."""
    if is_given:
        raise _FileError("and the setting without _FILE are both set: leave one of them out")
    return _only_line(path)


def read_secret(path: str) -> str:
    """The secret in a file, without the white space around it. Raises SettingsError."""
    try:
        return _only_line(path)
    except _FileError as error:
        raise SettingsError(f"the file {path!r} {error}") from error


def _only_line(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise _FileError(f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise _FileError("is not UTF-8") from None
    if not text.isprintable():
        raise _FileError("has more than one line, or characters that can't be printed")
    if not text:
        raise _FileError("is empty")
    return text


def networks_of(text: str) -> list[IPv4Network | IPv6Network]:
    """The networks of TRUSTED_PROXIES; an address is a network of one. Raises ValueError."""
    return [ip_network(part.strip()) for part in text.split(",") if part.strip()]


# scheme://host, and a port: what browsers send in Origin, after lowering its case.
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_USUAL_PORTS: Final = {"http": "80", "https": "443"}  # browsers leave them out


def origins_of(text: str) -> frozenset[str]:
    """The origins of INGEST_CORS_ORIGINS as browsers send them; `*` is all of them. Raises ValueError."""
    found = set()
    for part in filter(None, (one.strip().lower() for one in text.split(","))):
        match = _ORIGIN.fullmatch(part)
        if match is None and part != "*":
            raise ValueError(
                f"{part!r} is no origin: https://, a host, and its port if that is not the usual one; no path"
            )
        is_usual = match is not None and match[2] is not None and _USUAL_PORTS.get(match[1]) == match[2]
        found.add(part.rpartition(":")[0] if is_usual else part)
    if "*" in found and len(found) > 1:
        raise ValueError("* is all origins: leave the others out")
    return frozenset(found)


# RFC 7628, section 3.1
_EXTENSION: Final = re.compile(r"([A-Za-z]+)=([\x20-\x7e]+)")


def oauth_extensions_of(text: str) -> dict[str, str]:
    """The extensions of KAFKA_OAUTH_EXTENSIONS. Raises ValueError."""
    found = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        match = _EXTENSION.fullmatch(part)
        if match is None or match[1] == "auth":
            raise ValueError(f"{part!r} is no extension: it must be NAME=VALUE, the name of letters and not auth")
        found[match[1]] = match[2]
    return found


# Of the limits (events/s) and weights of accounts: by the settings, and by operators.
ACCOUNT_FIGURE_MIN: Final = 0.01
ACCOUNT_RATE_MAX: Final = 10_000_000.0
ACCOUNT_WEIGHT_MAX: Final = 100.0


def figures_of(text: str) -> dict[str, float]:
    """The numbers of ACCOUNT_LIMITS or ACCOUNT_WEIGHTS, by account. Raises ValueError."""
    figures = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, number = part.rpartition("=")
        account = account_named(name)
        if account is None:
            raise ValueError(f"{part!r} does not begin with an address and =")
        try:
            figures[account] = float(number)
        except ValueError:
            raise ValueError(f"{part!r} does not end with a number") from None
    return figures


def _figure_problems(name: str, text: str, most: float) -> list[str]:
    try:
        figures = figures_of(text)
    except ValueError as error:
        return [f"{name}: {error}"]
    return [
        f"{name}: {account}={figure:g} is not between {ACCOUNT_FIGURE_MIN:g} and {most:g}"
        for account, figure in figures.items()
        if not ACCOUNT_FIGURE_MIN <= figure <= most
    ]


def _limit_problems(settings: Settings) -> list[str]:
    """Values outside their own limits; NaN is outside any limits."""
    problems = []
    for field in dataclasses.fields(settings):
        low, high, choices = field.metadata["low"], field.metadata["high"], field.metadata["choices"]
        value = getattr(settings, field.name)
        if choices is not None and value not in choices:
            problems.append(f"{field.name.upper()}={value!r} is none of {', '.join(choices)}")
        if low is None:
            continue
        if not low <= value <= high:
            problems.append(f"{field.name.upper()}={value} is not between {low} and {high}")
    return problems


_REPLICATED_FROM: Final = 2  # copies

_OAUTH: Final = "OAUTHBEARER"
_TOKEN_URL: Final = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[!-\"$-~]*)?")

_TOPIC_NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


def _log_keep_problems(settings: Settings) -> list[str]:
    """LOG_KEEP_HOURS where nothing could be deleted, or where it is unknown what is stored."""
    if not settings.log_keep_hours:
        return []
    if settings.log_scheme != "kafka":
        return [f"LOG_KEEP_HOURS={settings.log_keep_hours} is for Kafka: on Redis, LOG_TRIM deletes what is stored"]
    if settings.event_sink_url:
        return [f"LOG_KEEP_HOURS={settings.log_keep_hours} needs events in PostgreSQL: leave EVENT_SINK_URL empty"]
    return []


def _dedup_problems(settings: Settings) -> list[str]:
    """DEDUP_DAYS where it would do nothing, or where an event would be stored twice."""
    days = settings.dedup_days
    if not days:
        return []
    if not settings.events_by_day:
        return [f"DEDUP_DAYS={days} needs EVENTS_BY_DAY=yes: in one table an id is kept as long as its event"]
    if not settings.retention_days:
        return [f"DEDUP_DAYS={days} needs RETENTION_DAYS: an event that is kept for ever needs its id for ever"]
    if days < settings.retention_days:
        return [
            f"DEDUP_DAYS={days} is below RETENTION_DAYS={settings.retention_days}: an id is kept as long as its event"
        ]
    return []


def _cross_problems(settings: Settings) -> list[str]:
    """Values that contradict each other."""
    problems = []
    if settings.rate_min > settings.rate_max:
        problems.append(f"RATE_MIN={settings.rate_min} is above RATE_MAX={settings.rate_max}")
    if settings.lag_degraded >= settings.lag_critical:
        problems.append(f"LAG_DEGRADED={settings.lag_degraded} is not below LAG_CRITICAL={settings.lag_critical}")
    if settings.drain_hard_seconds_max <= settings.drain_run_seconds_max:
        problems.append(
            f"DRAIN_HARD_SECONDS_MAX={settings.drain_hard_seconds_max} is not above "
            f"DRAIN_RUN_SECONDS_MAX={settings.drain_run_seconds_max}"
        )
    if settings.lease_seconds > settings.burst_seconds:
        problems.append(f"LEASE_SECONDS={settings.lease_seconds} is above BURST_SECONDS={settings.burst_seconds}")
    are_urls_wrong = False
    for name, schemes in _SCHEMES.items():
        url = getattr(settings, name)
        problem = None if not url and not getattr(Settings, name) else url_problem(url, schemes)
        if problem is not None:
            are_urls_wrong = True
            problems.append(f"{name.upper()} {problem}")  # without the URL: it may hold a password
    if settings.event_sink_url and not _FOLDER_URL.fullmatch(settings.event_sink_url):
        problems.append(f"EVENT_SINK_URL={settings.event_sink_url!r} is neither empty nor file:///, then a folder")
    try:
        networks_of(settings.trusted_proxies)
    except ValueError as error:
        problems.append(f"TRUSTED_PROXIES: {error}")
    try:
        origins_of(settings.ingest_cors_origins)
    except ValueError as error:
        problems.append(f"INGEST_CORS_ORIGINS: {error}")
    problems += _log_keep_problems(settings)
    problems += _dedup_problems(settings)
    problems += _figure_problems("ACCOUNT_LIMITS", settings.account_limits, ACCOUNT_RATE_MAX)
    problems += _figure_problems("ACCOUNT_WEIGHTS", settings.account_weights, ACCOUNT_WEIGHT_MAX)
    if settings.ingest_tls_key and not settings.ingest_tls_cert:
        problems.append("INGEST_TLS_KEY needs INGEST_TLS_CERT: without it ingest speaks plain HTTP")
    problems += _client_certificate_problems(settings)
    problems += _operator_problems(settings)
    problems += _signing_problems(settings)
    if not are_urls_wrong:
        problems += _redis_problems(settings)
        if settings.log_scheme == "kafka":
            problems += _kafka_problems(settings)
    return problems


def _client_certificate_problems(settings: Settings) -> Iterator[str]:
    """Values that contradict each other for clients' certificates."""
    mode = settings.ingest_tls_client
    if mode == "off":
        if settings.ingest_tls_client_ca:
            yield "INGEST_TLS_CLIENT_CA needs INGEST_TLS_CLIENT=optional or required"
        if settings.ingest_tls_client_as_key:
            yield "INGEST_TLS_CLIENT_AS_KEY needs INGEST_TLS_CLIENT=optional or required"
        return
    left_out = [name.upper() for name in ("ingest_tls_cert", "ingest_tls_client_ca") if not getattr(settings, name)]
    if left_out:
        yield f"INGEST_TLS_CLIENT={mode} needs {' and '.join(left_out)}"
    if mode == "required" and not settings.operator_port:
        yield (
            "INGEST_TLS_CLIENT=required needs OPERATOR_PORT: health checks, browsers and Prometheus have no certificate"
        )
    if settings.ingest_tls_client_as_key and not settings.ingest_keys:
        yield "INGEST_TLS_CLIENT_AS_KEY needs INGEST_KEYS=yes: without it no client needs a key"


OPERATOR_CONNECTIONS_BESIDE_PAGES: Final = 100
OPERATOR_PASSWORD_CHARS_MIN: Final = 12  # nothing slows down who guesses


def _operator_problems(settings: Settings) -> Iterator[str]:
    """Values that contradict each other for operators."""
    if settings.operator_port == settings.ingest_port:
        yield f"OPERATOR_PORT={settings.operator_port} is INGEST_PORT too: set it to 0 if both should be one port"
    if not settings.operator_port and settings.operator_host != Settings.operator_host:
        yield f"OPERATOR_HOST={settings.operator_host} needs OPERATOR_PORT"
    if 0 < len(settings.operator_password) < OPERATOR_PASSWORD_CHARS_MIN:
        yield f"OPERATOR_PASSWORD has fewer than {OPERATOR_PASSWORD_CHARS_MIN} characters"
    if settings.runbooks_url and not _WEB_URL.fullmatch(settings.runbooks_url):
        yield f"RUNBOOKS_URL={settings.runbooks_url!r} is neither empty nor http:// or https://, then a host"
    if "@" in settings.prometheus_url:  # the message leaves out the address, which may have a password
        yield "PROMETHEUS_URL has a user before its host, and ingest sends none: leave out what is before the @"
    elif settings.prometheus_url and not _WEB_URL.fullmatch(settings.prometheus_url):
        yield f"PROMETHEUS_URL={settings.prometheus_url!r} is neither empty nor http:// or https://, then a host"
    for name, url in page_urls_of(settings.page_urls):
        if not name or not _LINK.fullmatch(url):
            yield f"PAGE_URLS has {name}={url}, which is not a name, `=`, and http:// or https:// with a host"


def page_urls_of(text: str) -> list[tuple[str, str]]:
    """The names and the URLs of PAGE_URLS."""
    pairs = [one.strip().partition("=") for one in text.split(",") if one.strip()]
    return [(name.strip(), url.strip()) for name, _, url in pairs]


def public_problem(host: str, operator_host: str | None, *, takes_all: bool, shows_all: bool) -> str | None:
    """Why ingest may not listen: other machines could send events, or see what operators see. None if it may.

    `operator_host` is that of OPERATOR_PORT; None if operators share the port of `host`. `takes_all` and `shows_all`:
    neither a key or password nor a setting decides who may.
    """
    if takes_all and not is_loopback(host):
        return (
            f"INGEST_HOST={host} can be reached from other machines, and no client needs an API key: set "
            "INGEST_KEYS=yes (docs/keys.md), INGEST_TLS_CLIENT=required (docs/client-certificates.md), or "
            "INGEST_OPEN=yes if everybody who reaches it may send events"
        )
    if shows_all and operator_host is None and not is_loopback(host):
        return (
            f"INGEST_HOST={host} can be reached from other machines, and so can the live page, health and metrics: set "
            "OPERATOR_PORT to move them to the loopback address (docs/operators.md), or OPERATOR_PASSWORD, or "
            "OPERATOR_OPEN=yes if everybody who reaches them may read them"
        )
    if shows_all and operator_host is not None and not is_loopback(operator_host):
        return (
            f"OPERATOR_HOST={operator_host} can be reached from other machines, and operators need no password there: "
            "set OPERATOR_PASSWORD (docs/operators.md), or OPERATOR_OPEN=yes if everybody who reaches it may look"
        )
    return None


def _signing_problems(settings: Settings) -> Iterator[str]:
    """Settings for signed messages that are left out, if others are given."""
    fields = ("signing_key_file", "signing_cert_file", "signing_cert_folder")
    left_out = [name.upper() for name in fields if not getattr(settings, name)]
    if 0 < len(left_out) < len(fields):
        yield f"{' and '.join(left_out)} is missing: messages are signed with all of the SIGNING_… settings"


def _redis_problems(settings: Settings) -> Iterator[str]:
    """Values that contradict each other in the links to Redis."""
    urls = [name for name in ("redis_url", "event_log_url") if getattr(settings, name).startswith("redis")]
    for name in urls:
        url = getattr(settings, name)
        options = sorted(option for option in query_of(url) if "ssl" in option)
        if options:
            yield (
                f"{name.upper()} has {' and '.join(options)}, which Celery and redis-py read in different ways: use "
                "REDIS_CA_FILE, REDIS_CERT_FILE, REDIS_KEY_FILE or REDIS_TLS_UNVERIFIED"
            )
            continue
        try:
            address = sentinel_url(url)
        except ValueError as error:
            yield f"{name.upper()} {error}"
            continue
        if address is None and len(hosts_of(url)) > 1:
            yield (
                f"{name.upper()} names several servers, and Sluice uses one: with Sentinel the URL begins with "
                "redis+sentinel:// (docs/links.md)"
            )
    fields = ("redis_ca_file", "redis_cert_file", "redis_key_file", "redis_tls_unverified")
    given = [name.upper() for name in fields if getattr(settings, name)]
    sentinel_fields = [name for name in ("redis_sentinel_user", "redis_sentinel_password") if getattr(settings, name)]
    if sentinel_fields and not any(scheme_of(getattr(settings, name)) in SENTINEL_SCHEMES for name in urls):
        yield (
            f"{' and '.join(name.upper() for name in sentinel_fields)} is set, and neither REDIS_URL nor EVENT_LOG_URL "
            "begins with redis+sentinel:// or rediss+sentinel://"
        )
    if settings.redis_sentinel_user and not settings.redis_sentinel_password:
        yield "REDIS_SENTINEL_USER needs REDIS_SENTINEL_PASSWORD (or REDIS_SENTINEL_PASSWORD_FILE)"
    if any(has_redis_tls(getattr(settings, name)) for name in urls):
        try:
            settings.redis_tls.context()
        except ValueError as error:
            yield str(error)
    elif given:
        yield f"{', '.join(given)} only works with TLS, and neither REDIS_URL nor EVENT_LOG_URL begins with rediss://"


def _kafka_problems(settings: Settings) -> Iterator[str]:
    """Values that contradict each other, if the event log is Kafka."""
    if not _TOPIC_NAME.fullmatch(settings.log_topic):
        yield (
            f"LOG_TOPIC={settings.log_topic!r} is no name of a Kafka topic: 1 to 249 letters, digits, dots, hyphens "
            "and underscores, and not . or .."
        )
    if settings.kafka_client == "confluent" and importlib.util.find_spec("confluent_kafka") is None:
        what = "-c constraints.txt -r requirements-confluent.txt" if IS_CHECKOUT else "'sluice[confluent]'"
        yield (
            "KAFKA_CLIENT=confluent needs the package confluent-kafka, which is not installed: "
            f"`pip install {what}`, or leave KAFKA_CLIENT out"
        )
    files = settings.kafka_tls
    if files is None:
        given = [name for name in ("kafka_ca_file", "kafka_cert_file", "kafka_key_file") if getattr(settings, name)]
        if given:
            names = ", ".join(name.upper() for name in given)
            yield f"{names} only works with TLS, and EVENT_LOG_URL does not begin with kafka+ssl://"
    else:
        try:
            files.context()
        except ValueError as error:
            yield str(error)
    yield from _kafka_user_problems(settings)
    yield from _kafka_oauth_problems(settings)
    mechanism = settings.kafka_sasl_mechanism
    readable = {"PLAIN": "password", _OAUTH: "access token"}.get(mechanism)
    if readable and files is None and not _is_on_loopback(settings.event_log_url):
        yield (
            f"KAFKA_SASL_MECHANISM={mechanism} would send the {readable} unencrypted: EVENT_LOG_URL must begin with "
            "kafka+ssl://, or use SCRAM-SHA-512"
        )


def _kafka_user_problems(settings: Settings) -> Iterator[str]:
    mechanism, is_given = settings.kafka_sasl_mechanism, settings.kafka_user or settings.kafka_password
    if mechanism == _OAUTH:
        if is_given:
            yield (
                "KAFKA_USER and KAFKA_PASSWORD are for PLAIN and SCRAM: for OAUTHBEARER they are "
                "KAFKA_OAUTH_CLIENT_ID and KAFKA_OAUTH_CLIENT_SECRET"
            )
    elif mechanism and not (settings.kafka_user and settings.kafka_password):
        yield f"KAFKA_SASL_MECHANISM={mechanism} needs KAFKA_USER and KAFKA_PASSWORD (or KAFKA_PASSWORD_FILE)"
    elif not mechanism and is_given:
        yield "KAFKA_USER or KAFKA_PASSWORD is set, and KAFKA_SASL_MECHANISM is not"


def _kafka_oauth_problems(settings: Settings) -> Iterator[str]:
    """Values that contradict each other for OAUTHBEARER."""
    given = [field.name for field in dataclasses.fields(settings) if field.name.startswith("kafka_oauth_")]
    given = [name for name in given if getattr(settings, name)]
    if settings.kafka_sasl_mechanism != _OAUTH:
        if given:
            yield f"{', '.join(map(str.upper, given))} only works with KAFKA_SASL_MECHANISM=OAUTHBEARER"
        return
    try:
        oauth_extensions_of(settings.kafka_oauth_extensions)
    except ValueError as error:
        yield f"KAFKA_OAUTH_EXTENSIONS: {error}"
    if settings.kafka_oauth_token_file:
        others = [name.upper() for name in given if name not in ("kafka_oauth_token_file", "kafka_oauth_extensions")]
        if others:
            yield f"KAFKA_OAUTH_TOKEN_FILE is set, so nobody requests an access token: leave {', '.join(others)} out"
        return
    if not (settings.kafka_oauth_url and settings.kafka_oauth_client_id and settings.kafka_oauth_client_secret):
        yield (
            "KAFKA_SASL_MECHANISM=OAUTHBEARER needs KAFKA_OAUTH_URL, KAFKA_OAUTH_CLIENT_ID and "
            "KAFKA_OAUTH_CLIENT_SECRET (or KAFKA_OAUTH_CLIENT_SECRET_FILE), or KAFKA_OAUTH_TOKEN_FILE"
        )
    if settings.kafka_oauth_url:
        yield from _token_url_problems(settings.kafka_oauth_url)
    if settings.kafka_oauth_ca_file:
        try:
            TlsFiles("KAFKA_OAUTH", settings.kafka_oauth_ca_file, "", "").context()
        except ValueError as error:
            yield str(error)


def _token_url_problems(url: str) -> Iterator[str]:
    """What is wrong with KAFKA_OAUTH_URL, without any part of a password in it."""
    problem = url_problem(url, ("https", "http"))
    if problem is None and not _TOKEN_URL.fullmatch(url):
        problem = "is not of the form https://host/path: the client is KAFKA_OAUTH_CLIENT_ID"
    if problem is not None:
        yield f"KAFKA_OAUTH_URL {problem}"
    elif scheme_of(url) == "http" and not _is_on_loopback(url):
        yield "KAFKA_OAUTH_URL would send the secret unencrypted: it must begin with https://"


def _is_on_loopback(url: str) -> bool:
    """Whether all hosts of a URL are this machine."""
    hosts = (urlsplit(f"//{host}").hostname or "" for host in hosts_of(url))
    return all(is_loopback(host) for host in hosts)
