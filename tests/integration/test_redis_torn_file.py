"""A Redis whose append-only file ends within a transaction, and what its next starts bring back."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from checks.testbed.waiting import eventually
from pipeline.errors import LogUnavailableError
from pipeline.log import redis_aof
from stack.servers import Server, ServerError
from support.event_logs import CALL_SECONDS_MAX, RedisRig, read_all, recovered, redis_log_rig, timed


@dataclass
class TearableRig:
    """A log on a Redis of its own, whose file can be made to end in the middle of the latest append."""

    rig: RedisRig
    server: Server
    folder: Path

    def tear(self) -> None:
        """Die as in the middle of the write: of the latest transaction its beginning and its first command stay."""
        self.server.kill()
        file = max(self.folder.glob("appendonlydir/*.incr.aof"), key=lambda one: int(one.name.split(".")[-3]))
        content = file.read_bytes()
        begun = content.rindex(b"*1\r\n$5\r\nMULTI\r\n")
        second = content.index(b"XADD", content.index(b"XADD", begun) + 1)
        file.write_bytes(content[: second + 2])

    def restart(self) -> None:
        self.server.kill()
        self.server.start()


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append waits for a rewrite no longer than in a shipped process."""
    monkeypatch.setattr(redis_aof, "REWRITE_WAIT_SECONDS", 0.6)


@pytest.fixture
def torn(own_log_redis: Server, tmp_path: Path) -> Iterator[TearableRig]:
    """A log with one whole append of 10 records, then one of 3 that was not acknowledged, and torn within."""
    rig = redis_log_rig(own_log_redis)
    log = rig.open()
    recovered(lambda: log.append([(0, b"%d" % i) for i in range(10)]))
    log.append([(0, b"torn %d" % i) for i in range(3)])
    made = TearableRig(rig, own_log_redis, tmp_path / "redis-log")
    made.tear()
    own_log_redis.start()
    yield made
    rig.close()


def test_what_was_cut_off_does_not_come_back_in_the_place_of_what_was_acknowledged_since(torn: TearableRig) -> None:
    # Given a Redis that came back without what was cut off, and appends since
    log = torn.rig.open()
    kept = [b"%d" % i for i in range(10)]
    assert read_all(log, 0) == kept
    added = [b"acknowledged %d" % i for i in range(5)]
    for value in added:
        recovered(partial(log.append, [(0, value)]))
    # When it starts once more, and again
    for _ in range(2):
        torn.restart()
        # Then the log is what was acknowledged, at the offsets that it had
        recovered(log.identity)
        assert recovered(lambda: read_all(log, 0)) == kept + added


def test_a_server_that_is_killed_while_it_mends_a_torn_file_keeps_everything(torn: TearableRig) -> None:
    # Given a Redis whose file was torn, and that is killed while it writes it anew
    log = torn.rig.open()
    with torn.rig.client() as client:
        client.config_set("rdb-key-save-delay", 10_000_000)  # microseconds for each key: no need to hurry
        with pytest.raises(LogUnavailableError, match="append-only file"):
            log.append([(0, b"refused")])
        assert client.info("persistence")["aof_rewrite_in_progress"] == 1
    torn.server.kill()
    # When it starts, it mends the file and ends, since a newer one follows; and starts again, as supervisors have it do
    with pytest.raises(ServerError, match="the truncated file is not the last file"):
        torn.server.start()
    torn.server.start()
    # Then nothing is lost
    kept = [b"%d" % i for i in range(10)]
    assert recovered(lambda: read_all(log, 0)) == kept
    recovered(lambda: log.append([(0, b"taken")]))
    torn.restart()
    recovered(log.identity)
    assert read_all(log, 0) == [*kept, b"taken"]


def _resume(children: list[psutil.Process]) -> None:
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.resume()


def test_nothing_is_appended_while_the_file_is_written_anew(own_log_redis: Server) -> None:
    # Given a Redis that has just started, and takes a while for its file
    rig = redis_log_rig(own_log_redis)
    log = rig.open()
    with rig.client() as client, contextlib.ExitStack() as stack:
        client.set("slow", "x" * 100)
        client.config_set("rdb-key-save-delay", 2_000_000)  # microseconds for each key: that one, and the log's id
        # When something is appended
        rewriting: list[psutil.Process] = []
        stack.callback(_resume, rewriting)
        for _ in range(3):
            result, seconds = timed(lambda: log.append([(0, b"refused")]))
            # Then it is refused in time, and not stored
            assert isinstance(result, LogUnavailableError), repr(result)
            assert "rewrites its append-only file" in str(result)
            assert seconds < CALL_SECONDS_MAX
            if not rewriting:  # from now on it takes as long as this test
                rewriting += psutil.Process(client.info("server")["process_id"]).children()
                assert len(rewriting) == 1
                rewriting[0].suspend()
        assert rig.open().positions()[0].end == 0
        rewriting[0].resume()
        # And the log takes it once the file is there, as a second writer does, with no second rewrite
        recovered(lambda: log.append([(0, b"taken")]))
        rig.open().append([(0, b"by another")])
        assert client.info("persistence")["aof_rewrites"] == 1
    assert read_all(log, 0) == [b"taken", b"by another"]
    rig.close()


def test_a_rewrite_that_failed_is_none(own_log_redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_aof, "REWRITE_AGAIN_SECONDS", 600.0)
    # Given a Redis that has just started, and whose rewrite is killed half-way
    rig = redis_log_rig(own_log_redis)
    log = rig.open()
    with rig.client() as client:
        client.set("slow", "x")
        client.config_set("rdb-key-save-delay", 30_000_000)  # microseconds for each key: no need to hurry
        with pytest.raises(LogUnavailableError, match="append-only file"):
            log.append([(0, b"refused")])
        (child,) = psutil.Process(client.info("server")["process_id"]).children()
        child.kill()
        eventually(lambda: client.info("persistence")["aof_last_bgrewrite_status"] == "err", "the rewrite has failed")
        # Then nothing is appended, and another one is not asked for at once: it copies all that the log holds
        with pytest.raises(LogUnavailableError, match="the last one failed, and its own log says why"):
            log.append([(0, b"refused")])
        assert client.info("persistence")["aof_rewrite_in_progress"] == 0
        assert rig.open().positions()[0].end == 0
        # And after a while it is, and with it the append
        client.config_set("rdb-key-save-delay", 0)
    monkeypatch.setattr(redis_aof, "REWRITE_AGAIN_SECONDS", 0.5)
    recovered(lambda: log.append([(0, b"taken")]))
    assert read_all(log, 0) == [b"taken"]
    rig.close()


def test_a_server_that_may_not_write_its_file_anew_says_so_until_it_may(
    own_log_redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_aof, "REWRITE_AGAIN_SECONDS", 600.0)
    # Given a Redis whose user is not allowed to ask for it
    rig = redis_log_rig(own_log_redis)
    log = rig.open()
    with rig.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof")
        # Then nothing is appended, and the reason is told
        for reason in ("no permissions", "its own log says why"):
            with pytest.raises(LogUnavailableError, match=reason):
                log.append([(0, b"refused")])
        assert rig.open().positions()[0].end == 0
        # When the user may
        client.execute_command("ACL", "SETUSER", "default", "+bgrewriteaof")
    monkeypatch.setattr(redis_aof, "REWRITE_AGAIN_SECONDS", 0.5)
    # Then it is
    recovered(lambda: log.append([(0, b"taken")]))
    assert read_all(log, 0) == [b"taken"]
    rig.close()


def test_a_server_without_a_file_has_none_to_write_anew(own_log_redis: Server) -> None:
    rig = redis_log_rig(own_log_redis)
    with rig.client() as client:
        client.config_set("appendonly", "no")
        rig.open().append([(0, b"taken")])
        assert client.info("persistence")["aof_rewrites"] == 0
    rig.close()
