"""The event log on Redis together with the real floors: the mirror on the control server."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from pipeline.errors import FencedError, LogUnavailableError
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.settings import Settings
from pipeline.store.redis import RedisFloors
from pipeline.wiring import StoredFloors
from stack.servers import Server, free_port
from support.event_logs import log_settings, must_read, recovered


@pytest.fixture
def system(own_log_redis: Server, control_redis: Server) -> Settings:
    return replace(log_settings(own_log_redis.url), redis_url=control_redis.url)


def test_a_backlog_is_drained_after_a_restart_though_nothing_more_comes_in(
    system: Settings, own_log_redis: Server
) -> None:
    # Given a log with a backlog, and a drain that stores it
    floors = RedisFloors(system)
    writer, reader = (RedisStreamsLog(system, StoredFloors(system)) for _ in range(2))
    floors.seed(reader.identity().log_id, {})
    writer.append([(0, b"%d" % i) for i in range(10)])
    before = reader.identity()
    floors.raise_floor(before.log_id, before.incarnation, 0, 4)
    # When the log restarts, and no event comes in that would make an append
    own_log_redis.kill()
    own_log_redis.start()
    after = recovered(reader.identity)
    # Then the drain may go on under the new incarnation, and not under the old one
    floors.raise_floor(after.log_id, after.incarnation, 0, 8)
    with pytest.raises(FencedError):
        floors.raise_floor(before.log_id, before.incarnation, 0, 10)
    # And the next append knows how far it came
    recovered(lambda: writer.append([(0, b"10")]))
    assert must_read(reader, 0, 8).values == [b"8", b"9", b"10"]
    writer.close()
    reader.close()


def test_a_batch_that_was_being_stored_when_the_tail_was_lost_keeps_its_offsets(
    system: Settings, own_log_redis: Server, tmp_path: Path
) -> None:
    # Given a drain that has raised the floor for a batch, and not committed it yet
    floors = RedisFloors(system)
    writer, reader = (RedisStreamsLog(system, StoredFloors(system)) for _ in range(2))
    identity = reader.identity()
    floors.seed(identity.log_id, {})
    writer.append([(0, b"a")])
    shutil.copytree(tmp_path / "redis-log", tmp_path / "copy")
    writer.append([(0, b"b")] * 4)
    floors.raise_floor(identity.log_id, identity.incarnation, 0, 5)
    # When the log loses that batch, and events come in
    own_log_redis.kill()
    shutil.rmtree(tmp_path / "redis-log")
    shutil.copytree(tmp_path / "copy", tmp_path / "redis-log")
    own_log_redis.start()
    recovered(lambda: writer.append([(0, b"c")]))
    # Then they lie behind it, whether it was committed after all or not
    recovered(reader.identity)
    batch = must_read(reader, 0, 1)
    assert (batch.offset, batch.gap_from, batch.values) == (5, 1, [b"c"])
    writer.close()
    reader.close()


def test_a_new_log_takes_events_before_postgres_was_ever_there(system: Settings, control_redis: Server) -> None:
    # Given a first start, with PostgreSQL away
    settings = replace(system, database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    first = RedisStreamsLog(settings, StoredFloors(settings))
    # When events come in, then they are taken: nothing of a log that was just made can be stored
    first.append([(0, b"a")])
    # But a log that somebody else has made needs its floors from somewhere
    with redis.Redis.from_url(control_redis.url) as client:
        for key in client.scan_iter(match=settings.key_prefix + "*"):
            client.delete(key)
    second = RedisStreamsLog(settings, StoredFloors(settings))
    with pytest.raises(LogUnavailableError, match="PostgreSQL"):
        second.append([(0, b"b")])
    first.close()
    second.close()
