"""The cause of each condition, and the steps of its page that end it."""

import re
import time
from typing import Final

import psycopg2

from checks.runbooks.act import Act, NotActedOutError

_CONTROL: Final = "celery -A tasks.app control"
_INSPECT: Final = "celery -A tasks.app inspect"
_CRITICAL: Final = 2000  # LAG_CRITICAL of the system
_SLOW_SECONDS: Final = 35  # above the threshold of the alert SlowStoring
_RESTARTS: Final = 5  # above the threshold of the alert ProcessRestarts
_NEAR: Final = 0.8  # the threshold of the alerts RedisMemoryNearLimit and DatabaseConnectionsHigh


def breaker_open(act: Act) -> None:
    """PostgreSQL does not run."""
    act.note("made: PostgreSQL is stopped")
    act.stop("postgres")
    act.send(1)
    act.see("breaker_open")
    act.see_alert("BreakerOpen")
    act.run('psql "$DATABASE_URL" -c "SELECT 1"', may_fail=True)
    act.start("postgres")
    act.note("step 1: it is started")
    act.see_end("breaker_open")
    act.see_alert_end("BreakerOpen")


def paused_operator(act: Act) -> None:
    """An operator pauses consumption."""
    act.run(f"{_CONTROL} pause_consumption maintenance until noon")
    act.see("paused")
    act.see_alert("ConsumptionPaused")
    act.run(f"{_CONTROL} resume_consumption maintenance is over")
    act.see_end("paused")
    act.see_alert_end("ConsumptionPaused")


def paused_poison(act: Act) -> None:
    """A constraint on the table refuses most events."""
    act.note("made: ALTER TABLE log_events ADD CHECK (severity <> 'FATAL'), and 600 events with that severity")
    act.sql("ALTER TABLE log_events ADD CONSTRAINT no_fatal CHECK (severity <> 'FATAL') NOT VALID")
    act.send(600, severity="FATAL", key="poison")
    act.see("paused", "poison")
    partition = next(one["partition"] for one in act.status()["pauses"] if one["reason"] == "poison")
    act.run(f"{_INSPECT} poison {partition}")
    act.run(f"{_CONTROL} accept_poison {partition} --dry-run")
    act.sql("ALTER TABLE log_events DROP CONSTRAINT no_fatal")
    act.run(f"{_CONTROL} resume_consumption the constraint is removed")
    act.see_end("paused")


def paused_log_gap(act: Act) -> None:
    """Events are deleted from the log before they are stored."""
    act.run(f"{_CONTROL} pause_consumption to make a gap")
    act.see("paused")
    act.send(50, key="gap")
    log = act.redis("EVENT_LOG_URL")
    streams = sorted(key for key in log.scan_iter("sluice:log:stream:*") if log.xlen(key))
    for key in streams:
        log.xtrim(key, maxlen=0, approximate=False)
    act.note("made: the streams of the log are trimmed before their events are stored; one more event is sent")
    act.send(1, key="gap")
    act.run(f"{_CONTROL} resume_consumption")
    act.see("paused", "log gap")
    partition = next(one["partition"] for one in act.status()["pauses"] if one["reason"] == "log_gap")
    said = act.run(f"{_INSPECT} gap {partition}")
    skip = said.partition("`control skip_gap ")[2].partition("`")[0]
    act.run(f"{_CONTROL} skip_gap {skip} --dry-run")
    act.run(f"{_CONTROL} skip_gap {skip}")
    act.see_end("paused")


def controller_silent(act: Act) -> None:
    """The control worker is frozen."""
    act.note("made: SIGSTOP to the control worker and its children")
    act.freeze("control")
    act.see("controller_silent")
    act.see_alert("ControllerSilent")
    act.run(f"{_INSPECT} ping")
    act.thaw("control")
    act.note("it goes on (a restart does the same)")
    act.see_end("controller_silent")
    act.see_alert_end("ControllerSilent")


def store_down(act: Act) -> None:
    """The control Redis is stopped."""
    act.note("made: the Redis of REDIS_URL is stopped")
    act.stop("redis-control")
    act.see("store_down")
    act.note(f"an event meanwhile: {act.send(1)[0]}")
    act.start("redis-control")
    act.note("step 1: it is started")
    act.see_end("store_down", "pauses_unknown", "not_restored", "controller_silent")


def pauses_unknown(act: Act) -> None:
    """The control Redis is emptied while PostgreSQL can't be reached."""
    act.note("made: PostgreSQL accepts no connections, and FLUSHALL on the Redis of REDIS_URL")
    act.sql(
        "ALTER DATABASE sluice ALLOW_CONNECTIONS false",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'sluice'",
        database="template1",
    )
    act.redis("REDIS_URL").flushall()
    act.see("pauses_unknown")
    act.sql("ALTER DATABASE sluice ALLOW_CONNECTIONS true", database="template1")
    act.note("step 2: PostgreSQL is repaired")
    act.see_end("pauses_unknown", "not_restored", "breaker_open")


def no_progress(act: Act) -> None:
    """The workers for batches are frozen."""
    act.note("made: SIGSTOP to the workers for batches, and an event")
    act.freeze("batches")
    act.send(1)
    act.see("no_progress")
    act.see_alert("NothingStored")
    act.thaw("batches")
    act.note("they go on (a restart does the same)")
    act.see_end("no_progress")
    act.see_alert_end("NothingStored")


def behind(act: Act) -> None:
    """Events wait while the workers for batches are stopped."""
    act.send(1)
    _until_all_is_stored(act)
    act.note("made: the workers for batches are stopped, and events are sent; LAG_DEGRADED=500, LAG_CRITICAL=2000")
    act.stop("batches")
    waits_since = time.monotonic()
    act.send(250)
    act.until(lambda: _waiting_after(act, 250) > _CRITICAL, f"more than {_CRITICAL} events wait")
    act.see("behind")
    act.see_alert("LagCritical")
    act.run(f"{_INSPECT} lag")
    act.until(lambda: time.monotonic() - waits_since > _SLOW_SECONDS, f"the first events wait for {_SLOW_SECONDS} s")
    act.start("batches")
    act.note("step 2: the workers are started")
    act.see_alert("SlowStoring")
    act.see_end("behind", "no_progress")
    act.see_alert_end("LagCritical")


def _waiting_after(act: Act, count: int) -> int:
    """Send `count` more events; returns the lag after that."""
    act.send(count)
    return int(act.status()["consumerLag"] or 0)


def log_down(act: Act) -> None:
    """The Redis of the event log is stopped."""
    act.note("made: the Redis of EVENT_LOG_URL is stopped")
    act.stop("redis-log")
    act.see("log_down")
    act.see("lag_unknown")
    act.see_alert("EventLogDown")
    act.note(f"an event meanwhile: {act.send(1)[0]}")
    act.run('curl -s "$INGEST_URL/readyz"')
    act.start("redis-log")
    act.note("step 1: it is started")
    act.see_end("log_down", "lag_unknown")
    act.see_alert_end("EventLogDown")
    act.run('curl -s "$INGEST_URL/readyz"')


def log_full(act: Act) -> None:
    """The Redis of the event log is at its memory limit. Each ingest process sees it at its next append."""
    log = act.redis("EVENT_LOG_URL")
    before = str(log.config_get("maxmemory")["maxmemory"])
    log.config_set("maxmemory", 1 << 20)
    act.note("made: CONFIG SET maxmemory 1mb on the log's Redis; events are sent until they are refused")
    act.until(lambda: 503 in act.send(200, bodies=5), "clients get 503")
    act.until(lambda: "log is full" in _health(act), "GET /api/logs/health says it")
    act.run('curl -s "$INGEST_URL/api/logs/health"')
    log.config_set("maxmemory", before)
    act.note("step 2: CONFIG SET maxmemory with the value of before")
    act.until(lambda: act.send(1) == [202], "clients get 202")


def _health(act: Act) -> str:
    """The reasons of the ingest process, right after an append: it remembers a full log only briefly."""
    act.send(1)
    return "; ".join(act.health()["reasons"])


def refusing(act: Act) -> None:
    """Clients offer more than the rate."""
    act.note("made: bodies of 1,000 events as fast as one client can")
    act.send(1000, bodies=30)
    act.see("refusing")
    act.send(1000, bodies=60)
    act.see_alert("HighRefusalRatio")
    act.run(f"{_INSPECT} throttle")
    act.run(f"{_CONTROL} set_account_limit 127.0.0.1 100")
    act.run(f"{_CONTROL} clear_account_limit 127.0.0.1")
    act.see_end("refusing")


def dead_letters(act: Act) -> None:
    """A constraint refuses single events."""
    act.note("made: a constraint as for poison, and one event that it refuses among good ones")
    act.sql("ALTER TABLE log_events ADD CONSTRAINT no_fatal CHECK (severity <> 'FATAL') NOT VALID")
    act.send(1, severity="FATAL", key="letters")
    act.until(lambda: act.status()["deadLetters"] == 1, "status shows one dead letter")
    act.see_alert("DeadLetters")
    act.run(
        'psql "$DATABASE_URL" -c "SELECT reason, count(*), max(id) FROM dead_letters WHERE replayed_at IS NULL '
        'GROUP BY 1 ORDER BY 2 DESC"'
    )
    act.sql("ALTER TABLE log_events DROP CONSTRAINT no_fatal")
    act.run(f"{_CONTROL} replay_dead_letters --dry-run")
    act.run(f"{_CONTROL} replay_dead_letters")
    act.until(lambda: act.status()["deadLetters"] == 0, "status shows none")
    act.see_alert_end("DeadLetters")


def database_silent(act: Act) -> None:
    """A session holds a lock on the table that readers count."""
    act.note("made: a session locks dead_letters for 20 s")
    act.run(
        'psql "$DATABASE_URL" -q -c "BEGIN" -c "LOCK TABLE dead_letters" -c "SELECT pg_sleep(20)" >/dev/null 2>&1 & '
        "sleep 1"
    )
    act.see("database_silent")
    act.run(
        'psql "$DATABASE_URL" -c "SELECT pid, wait_event_type, left(query, 60) FROM pg_stat_activity '
        "WHERE state = 'active' ORDER BY query_start LIMIT 10\""
    )
    act.see_end("database_silent")


def process_missing(act: Act) -> None:
    """Workers and the only ingest process are stopped, then one of them restarts again and again."""
    act.note("made: the workers for batches are stopped, and the ingest process")
    act.stop("batches")
    act.stop("ingest-0")
    act.see_alert("WorkerMissing")
    act.see_alert("IngestMissing")
    act.run(f"{_INSPECT} ping")
    act.start("ingest-0")
    act.start("batches")
    act.run_until(f"{_INSPECT} ping", lambda said: "2 nodes online" in said, "both workers answer")
    act.see_alert_end("WorkerMissing")
    act.see_alert_end("IngestMissing")
    act.note("made: Beat is stopped and started again and again")
    for _ in range(_RESTARTS):
        act.stop("beat")
        act.start("beat")
    act.see_alert("ProcessRestarts")
    act.note("that alert looks a quarter of an hour back")


def schema_refused(act: Act) -> None:
    """A migration is not the one that was applied."""
    act.note("made: the digest of the first migration is changed in schema_migrations, and the control worker restarts")
    act.stop("control")
    act.sql("UPDATE schema_migrations SET sha256 = 'x' || sha256 WHERE version = 1")
    act.start("control")
    act.see("schema_refused")
    act.run(
        'psql "$DATABASE_URL" -c "SELECT version, name, left(sha256, 12) FROM schema_migrations ORDER BY 1 LIMIT 2"'
    )
    act.sql("UPDATE schema_migrations SET sha256 = substr(sha256, 2) WHERE version = 1")
    act.note("step 4: the change is undone")
    act.run("python -m pipeline migrate")
    act.see_end("schema_refused", "controller_silent")


def retention(act: Act) -> None:
    """The database keeps events for longer than RETENTION_DAYS."""
    act.send(1, key="old")
    _until_all_is_stored(act)
    # Only then is the age of the oldest event known: a new system makes the index in its first tick.
    act.until(lambda: act.metric("sluice_retention_overdue_seconds") == 0, "the control worker has prepared the table")
    act.note("made: UPDATE retention SET event_days = 90; RETENTION_DAYS=30; an event was stored 40 days ago")
    act.sql(
        "UPDATE retention SET event_days = 90",
        "UPDATE log_events SET stored_at = stored_at - interval '40 days' WHERE correlation_id = 'old'",
    )
    act.see("retention")
    act.see_alert("RetentionStopped")
    act.see_alert("RetentionBehind")
    act.run('psql "$DATABASE_URL" -c "SELECT min(stored_at) FROM log_events"')
    act.note("step 1")
    act.run("python -m pipeline migrate")
    act.see_end("retention")
    act.see_alert_end("RetentionStopped")
    act.see_alert_end("RetentionBehind")


def redis_memory_near_limit(act: Act) -> None:
    """A Redis has used four fifths of its maxmemory."""
    control = act.redis("REDIS_URL")
    before = str(control.config_get("maxmemory")["maxmemory"])
    used = int(str(control.info("memory")["used_memory"]))
    control.config_set("maxmemory", used * 10 // 9)
    act.note("made: CONFIG SET maxmemory on the Redis of REDIS_URL, a ninth above what it uses")
    act.until(lambda: _memory_share(act) > _NEAR, "the condition of the alert holds")
    act.see_alert("RedisMemoryNearLimit")
    act.run('redis-cli -u "$REDIS_URL" INFO memory | grep -E "^(used_memory_human|maxmemory_human|maxmemory_policy)"')
    act.run('redis-cli -u "$REDIS_URL" --bigkeys | grep -E "^Biggest|keys with"')
    act.run('redis-cli -u "$REDIS_URL" LLEN sluice:batches')
    control.config_set("maxmemory", before)
    act.note("CONFIG SET maxmemory with the value of before")
    act.until(lambda: _memory_share(act) < _NEAR, "the condition of the alert is over")
    act.see_alert_end("RedisMemoryNearLimit")


def _memory_share(act: Act) -> float:
    """The control Redis's value that the alert RedisMemoryNearLimit compares."""
    limit = act.metric("sluice_redis_memory_limit_bytes", role="control")
    return act.metric("sluice_redis_memory_bytes", role="control") / limit


def database_connections_high(act: Act) -> None:
    """Sessions of workers that no longer run."""
    act.until(lambda: _connections_share(act) < _NEAR, "the control worker has counted the sessions")
    limit = int(act.metric("sluice_database_connections_limit"))
    wanted = int(limit * _NEAR) + 1 - int(act.metric("sluice_database_connections"))
    url = act.urls["DATABASE_URL"]
    sessions = [psycopg2.connect(url, application_name="sluice") for _ in range(wanted)]
    try:
        act.note(f"made: {wanted} idle sessions with the name of Sluice's, as of workers of a host that was cut off")
        act.until(lambda: _connections_share(act) > _NEAR, "the condition of the alert holds")
        act.see_alert("DatabaseConnectionsHigh")
        act.run(
            'psql "$DATABASE_URL" -c "SELECT application_name, usename, state, count(*) FROM pg_stat_activity '
            'GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 3"'
        )
        pids = ", ".join(str(session.info.backend_pid) for session in sessions)
        act.run(
            f'psql "$DATABASE_URL" -c "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity '
            f'WHERE pid IN ({pids})"'
        )
        act.until(lambda: _connections_share(act) < _NEAR, "the condition of the alert is over")
        act.see_alert_end("DatabaseConnectionsHigh")
    finally:
        for session in sessions:
            session.close()


def _connections_share(act: Act) -> float:
    """The value that the alert DatabaseConnectionsHigh compares."""
    return act.metric("sluice_database_connections") / act.metric("sluice_database_connections_limit")


def clocks_differ(act: Act) -> None:
    """The clock of a worker's host is behind."""
    act.note("made: one more worker for batches, with a clock that is 5 s behind (libfaketime)")
    clock = act.clock("late", -5.0)
    with act.worker("late", "batches", **clock.environ):
        act.see("clocks_differ", "late")
        clock.step(5.0)
        act.note("step 1: its clock is right again")
        act.see_end("clocks_differ")


def former_log(act: Act) -> None:
    """The event log is another one, and the earlier one had events that were not stored."""
    act.run(f"{_CONTROL} pause_consumption to change the log")
    act.see("paused")
    act.send(20, key="former")
    act.until(lambda: act.status()["consumerLag"] == 20, "the lag is 20")
    act.note("made: FLUSHALL on the Redis of EVENT_LOG_URL: the log that begins there is another one")
    act.redis("EVENT_LOG_URL").flushall()
    act.run(f"{_CONTROL} resume_consumption")
    act.see("former_log")
    forget = next(one["lookAt"] for one in act.status()["reasons"] if one["code"] == "former_log")
    act.note("step 3: the events are given up")
    statement = forget.partition("DELETE FROM ")[2].splitlines()[0]
    act.run(f'psql "$DATABASE_URL" -c "DELETE FROM {statement}"')
    act.see_end("former_log")
    act.until(lambda: act.send(1) == [202], "clients get 202")
    _until_all_is_stored(act)


def began_late(act: Act) -> None:
    """The database is replaced by an empty one, as by a wrong DATABASE_URL."""
    act.send(40, key="late")
    _until_all_is_stored(act)
    act.note("made: the database is replaced by an empty one of the same name, and the workers are started again")
    _replace_database(act, "ALTER DATABASE sluice RENAME TO before", "CREATE DATABASE sluice")
    act.see("began_late", "stored before")
    act.run('psql "$DATABASE_URL" -c "SELECT * FROM stored_offsets"')
    act.run("python -m sluice doctor | grep stored")
    act.note("step 2: the right database is put back, and the workers are started again")
    _replace_database(act, "DROP DATABASE sluice", "ALTER DATABASE before RENAME TO sluice")
    act.see_end("began_late")
    act.note("made: the database is replaced once more, and this time the new one is meant")
    _replace_database(act, "ALTER DATABASE sluice RENAME TO before", "CREATE DATABASE sluice")
    act.see("began_late", "stored before")
    act.note("step 4: the new database is accepted")
    act.run(f"{_CONTROL} accept_late_begin a new server")
    act.see_end("began_late")
    act.send(1, key="late")
    _until_all_is_stored(act)


def _replace_database(act: Act, *statements: str) -> None:
    for program in ("batches", "control"):
        act.stop(program)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'sluice'"
    act.sql(end, *statements, database="template1")
    for program in ("control", "batches"):
        act.start(program)


def lag_unknown(act: Act) -> None:
    """Only the control worker can't reach the event log."""
    act.note("made: another control worker in place of the system's, with an EVENT_LOG_URL at which nothing listens")
    act.stop("control")
    with act.worker("astray", "control", EVENT_LOG_URL="redis://127.0.0.1:1/0"):
        act.see("lag_unknown")
        act.note(f"step 1; an event meanwhile: {act.send(1)[0]}")
        act.run('redis-cli -u "$EVENT_LOG_URL" PING')
    act.start("control")
    act.note("the control worker is started again with the right EVENT_LOG_URL")
    act.see_end("lag_unknown", "controller_silent")


def log_behind_stored(act: Act) -> None:
    """Both Redis servers are set back while they run, as by a snapshot of their memory."""
    act.send(20, key="back")
    _until_all_is_stored(act)
    servers = [act.redis("EVENT_LOG_URL"), act.redis("REDIS_URL")]
    before = [
        {key: server.dump(key) or b"" for pattern in patterns for key in server.scan_iter(pattern)}
        for server, patterns in zip(servers, (("sluice:log:*",), ("sluice:floor:*",)), strict=True)
    ]
    act.send(30, key="back")
    _until_all_is_stored(act)
    for server, values in zip(servers, before, strict=True):
        with server.pipeline() as pipe:
            for key, value in values.items():
                pipe.restore(key, 0, value, replace=True)
            pipe.execute()
    act.note("made: the log's keys, and the lowest offsets in REDIS_URL, are as they were before the last 30 events")
    act.send(1, key="back")
    act.see("log_behind_stored")
    partition = next(one["partition"] for one in act.status()["pauses"] if one["reason"] == "log_gap")
    said = act.run(f"{_INSPECT} gap {partition}")
    skip = said.partition("`control skip_gap ")[2].partition("`")[0]
    act.run(f"{_CONTROL} skip_gap {skip} --dry-run")
    act.run(f"{_CONTROL} skip_gap {skip}")
    act.see_end("log_behind_stored", "paused")
    act.send(1, key="back")
    _until_all_is_stored(act)


def log_tail_lost(act: Act) -> None:
    """The log's Redis comes back without its newest records. The reason stays for an hour: it is about a loss."""
    act.run(f"{_CONTROL} pause_consumption so that events wait")
    act.see("paused")
    go_back = act.snapshot_of_log()
    act.send(20, key="tail")
    act.note("made: the log's Redis starts on files of the time before the last 20 events, which were not stored")
    go_back()
    act.send(1, key="tail")
    act.see("log_tail_lost")
    act.see_alert("EventsLost")
    act.note("step 4")
    act.run('redis-cli -u "$EVENT_LOG_URL" CONFIG GET "append*"')
    act.run(f"{_CONTROL} resume_consumption")
    act.see_end("paused")
    act.send(1, key="tail")
    _until_all_is_stored(act)


def operator_password_wrong(act: Act) -> None:
    """A program has an old password."""
    count = (
        'curl -s -u any:"$OPERATOR_PASSWORD" "${OPERATOR_URL:-$INGEST_URL}/metrics" | '
        "grep '^sluice_ingest_operator_refusals_total'"
    )
    wrong = 'for i in $(seq 50); do curl -s -o /dev/null -u any:old "$INGEST_URL/metrics"; done'
    act.note(f"made: {wrong}")
    act.run(wrong)
    before = _refused_as_wrong(act.run(count))
    if before < 50:
        raise NotActedOutError(f"50 wrong passwords were counted as {before}")
    act.see_alert("OperatorPasswordWrong")
    act.note("step 1: the program gets the new password")
    act.run('curl -s -o /dev/null -w "%{http_code}\\n" -u any:"$OPERATOR_PASSWORD" "$INGEST_URL/metrics"')
    after = _refused_as_wrong(act.run(count))
    if after != before:
        raise NotActedOutError(f"the counter went on from {before} to {after}")


def _refused_as_wrong(said: str) -> int:
    """The number of requests with a wrong password, from the counter's lines."""
    found = re.search(r'reason="wrong"\}\s+([\d.]+)', said)
    return int(float(found[1])) if found else 0


def forged_messages(act: Act) -> None:
    """A shell without a key sends a command."""
    dropped = {"reason": "unsigned"}
    act.note("made: a remote command from a shell without the settings for signing")
    act.run(f"env -u SIGNING_KEY_FILE -u SIGNING_CERT_FILE -u SIGNING_CERT_FOLDER {_INSPECT} --timeout 5 lag")
    act.until(lambda: act.metric("sluice_dropped_messages_total", **dropped) > 0, "the condition of the alert holds")
    act.run(f"env -u SIGNING_KEY_FILE -u SIGNING_CERT_FILE -u SIGNING_CERT_FOLDER {_INSPECT} --timeout 5 lag")
    act.see_alert("ForgedMessages")
    act.run('grep "dropped a message" "$SLUICE_HOME/logs/control.log" | tail -n 1 | cut -c 1-200')
    act.run('python -m tasks.signing list "$(dirname "$SIGNING_CERT_FOLDER")"')
    act.note("step 1: the shell gets the three settings")
    before = act.metric("sluice_dropped_messages_total", **dropped)
    if "OK" not in act.run(f"{_INSPECT} lag"):
        raise NotActedOutError("a signed command was not carried out")
    if act.metric("sluice_dropped_messages_total", **dropped) != before:
        raise NotActedOutError("a signed command was counted as forged")


def _until_all_is_stored(act: Act) -> None:
    act.until(lambda: act.status()["consumerLag"] == 0, "the lag is 0: new events are stored")
