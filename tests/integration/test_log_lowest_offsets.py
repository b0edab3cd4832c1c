"""The event log on Redis together with the real lowest offsets: PostgreSQL, and the mirror on the control server."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from checks.testbed.database import ask
from checks.testbed.waiting import eventually
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.control_store.redis import RedisControlStore, RedisOffsetFence
from pipeline.drain import drain
from pipeline.drain.report import DrainOutcome
from pipeline.errors import FencedError, LogUnavailableError
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.settings import Settings
from pipeline.sink.memory import MemorySink
from pipeline.sink.migrate import migrate
from pipeline.wiring import make_lowest_offsets_source
from stack.servers import Server, free_port
from support.event_logs import log_settings, must_read, recovered
from support.records import record


@pytest.fixture
def system(own_log_redis: Server, control_redis: Server) -> Settings:
    """A system whose PostgreSQL is away."""
    return replace(
        log_settings(own_log_redis.url),
        redis_url=control_redis.url,
        database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
    )


def open_log(settings: Settings) -> RedisStreamsLog:
    return RedisStreamsLog(settings, make_lowest_offsets_source(settings))


class OldFiles:
    """What servers have on disk at one moment, to come back with later."""

    def __init__(self, folder: Path, *servers: tuple[Server, str]) -> None:
        self._folder = folder
        self._servers = servers

    def keep(self) -> None:
        for _, name in self._servers:
            shutil.copytree(self._folder / name, self._folder / "kept" / name)

    def come_back(self) -> None:
        for server, name in self._servers:
            server.kill()
            shutil.rmtree(self._folder / name)
            shutil.copytree(self._folder / "kept" / name, self._folder / name)
            server.start()


def run_drain(settings: Settings, log: RedisStreamsLog, sink: MemorySink, **changes: Any) -> DrainOutcome:
    clock = SystemClock()
    means = {
        "log": log,
        "sink": sink,
        "fence": RedisOffsetFence(settings),
        "settings": settings,
        "clock": clock,
        **changes,
    }
    breaker = SinkBreaker(settings, RedisControlStore(settings), clock, "test")
    return drain(0, breaker=breaker, paused=lambda: False, **means).outcome


def test_a_backlog_is_drained_after_restarts_though_nothing_more_comes_in(
    system: Settings, own_log_redis: Server, control_redis: Server
) -> None:
    # Given a log with a backlog
    settings = replace(system, drain_run_seconds_max=1.0, drain_poll_seconds=0.05)
    writer, reader = open_log(settings), open_log(settings)
    sink = MemorySink(settings)
    writer.append([(0, record(i)) for i in range(10)])
    # When the log restarts, and the control store loses everything, and no event comes in that would make an append
    own_log_redis.kill()
    own_log_redis.start()
    with redis.Redis.from_url(control_redis.url) as client:
        for key in client.scan_iter(match=settings.key_prefix + "*"):
            client.delete(key)
    recovered(reader.identity)
    # Then a drain makes the new incarnation the current one by itself, and stores it
    # (a run is short, and a busy machine may need another one)
    eventually(
        lambda: run_drain(settings, reader, sink) is DrainOutcome.FINISHED and len(sink.database.events) == 10,
        "all is stored",
    )
    # And another one, that began before, may not commit what it has read of the incarnation before
    with pytest.raises(FencedError):
        RedisOffsetFence(settings).raise_lowest_offset(reader.identity().log_id, "the one before", 0, 10)
    writer.close()
    reader.close()


def test_a_batch_that_was_being_stored_when_the_tail_was_lost_keeps_its_offsets(
    system: Settings, own_log_redis: Server, tmp_path: Path
) -> None:
    # Given a drain that has raised the lowest offset for a batch, and not committed it yet
    fence = RedisOffsetFence(system)
    files = OldFiles(tmp_path, (own_log_redis, "redis-log"))
    writer, reader = open_log(system), open_log(system)
    writer.append([(0, b"a")])
    identity = reader.identity()
    files.keep()
    writer.append([(0, b"b")] * 4)
    fence.raise_lowest_offset(identity.log_id, identity.incarnation, 0, 5)
    # When the log loses that batch, and events come in
    files.come_back()
    recovered(lambda: writer.append([(0, b"c")]))
    # Then they lie behind it, whether it was committed after all or not; the mirror is enough for that
    recovered(reader.identity)
    batch = must_read(reader, 0, 1)
    assert (batch.offset, batch.gap_from, batch.values) == (5, 1, [b"c"])
    writer.close()
    reader.close()


def test_a_new_log_takes_events_before_postgres_was_ever_there(system: Settings, control_redis: Server) -> None:
    # Given a first start, with PostgreSQL away, and a log that a worker has made
    worker, first = open_log(system), open_log(system)
    worker.identity()
    # When events come in, then they are taken: nothing of a log that was just made can be stored
    first.append([(0, b"a")])
    # But a log that somebody else has made needs its lowest offsets from somewhere
    with redis.Redis.from_url(control_redis.url) as client:
        for key in client.scan_iter(match=system.key_prefix + "*"):
            client.delete(key)
    second = open_log(system)
    with pytest.raises(LogUnavailableError, match="PostgreSQL"):
        second.append([(0, b"b")])
    for log in (worker, first, second):
        log.close()


@pytest.fixture
def both_older(
    own_log_redis: Server, own_control_redis: Server, database_url: str, tmp_path: Path
) -> tuple[Settings, OldFiles, Callable[[int], None]]:
    """A system of its own, the files of both its Redis servers, and what stores that far."""
    settings = replace(log_settings(own_log_redis.url), redis_url=own_control_redis.url, database_url=database_url)
    migrate(settings)
    files = OldFiles(tmp_path, (own_log_redis, "redis-log"), (own_control_redis, "redis-control"))

    def store(offset: int) -> None:
        identity = recovered(open_log(settings).identity)
        RedisOffsetFence(settings).raise_lowest_offset(identity.log_id, identity.incarnation, 0, offset)
        ask(
            database_url,
            "INSERT INTO stored_offsets (log_id, log_partition, next_offset) VALUES (%s, 0, %s) "
            "ON CONFLICT (log_id, log_partition) DO UPDATE SET next_offset = EXCLUDED.next_offset",
            [identity.log_id, offset],
        )

    return settings, files, store


@pytest.mark.parametrize("is_unavailable", [False, True])
def test_log_and_control_store_come_back_a_moment_old(
    both_older: tuple[Settings, OldFiles, Callable[[int], None]], is_unavailable: bool, tmp_path: Path
) -> None:
    # Given a system with 150 records, all stored, and files that know of 100 only
    settings, files, store = both_older
    writer = open_log(settings)
    recovered(lambda: writer.append([(0, b"%d" % i) for i in range(100)]))
    store(100)
    eventually(lambda: b"100" in _written(tmp_path / "redis-control"), "the mirror is on disk")
    files.keep()
    writer.append([(0, b"%d" % i) for i in range(100, 150)])
    store(150)
    # When both come back with those files
    files.come_back()
    if is_unavailable:
        writer.close()
        away = open_log(replace(settings, database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none"))
        # Then nothing is appended while nobody knows how far it was stored
        for _ in range(2):
            with pytest.raises(LogUnavailableError, match="event log"):
                away.append([(0, b"new")])
        assert away.positions()[0].end == 100
        away.close()
        return
    recovered(lambda: writer.append([(0, b"new")] * 50))
    # Then no new record has an offset that was stored
    reader = open_log(settings)
    batch = must_read(reader, 0, 150)
    assert (batch.offset, len(batch.values)) == (150, 50)
    assert reader.positions()[0].end == 200
    writer.close()
    reader.close()


def _written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*.aof"))


def test_a_batch_whose_lowest_offset_was_lost_with_the_mirror_is_waited_for(
    both_older: tuple[Settings, OldFiles, Callable[[int], None]], own_log_redis: Server
) -> None:
    # Given a drain between raising its lowest offset and its COMMIT: the first of its partition, so its row is not
    # visible
    settings, _, _ = both_older
    writer = open_log(settings)
    recovered(lambda: writer.append([(0, b"%d" % i) for i in range(10)]))
    identity = writer.identity()
    with contextlib.closing(psycopg2.connect(settings.database_url)) as storing:
        with storing.cursor() as cursor:
            cursor.execute("INSERT INTO stored_offsets VALUES (%s, 0, 10)", [identity.log_id])
        RedisOffsetFence(settings).raise_lowest_offset(identity.log_id, identity.incarnation, 0, 10)
        # When the mirror is lost, and the log restarts
        with redis.Redis.from_url(settings.redis_url) as client:
            client.flushall()
        own_log_redis.kill()
        own_log_redis.start()
        # Then nothing is appended before it is known whether that batch is stored
        with pytest.raises(LogUnavailableError):
            writer.append([(0, b"new")])
        storing.commit()
    recovered(lambda: writer.append([(0, b"new")]))
    assert make_lowest_offsets_source(settings)(identity.log_id, "any") == {0: 10}
    writer.close()
