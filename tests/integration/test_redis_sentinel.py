"""Redis Sentinel, for the log and for the control server: where replicas confirm writes, a failover loses nothing."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from checks.testbed.processes import batches_worker
from checks.testbed.waiting import wait_until
from pipeline import wiring
from pipeline.errors import SluiceError, StoreUnavailableError
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.names import KEY_PAUSE, PauseReason
from pipeline.ports.log import EventLog
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from support.event_logs import RedisRig, ScriptedLowestOffsets, log_settings, must_read, read_again, recovered
from support.records import record
from support.sentinels import WAIT_SECONDS_MAX, Watched, client_of, watched_redis
from tasks.app import make_app
from tasks.hints import send_hint

GROUP = 50
pytestmark = pytest.mark.timeout(600)  # sentinels wait for seconds before they act


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_redis(tmp_path_factory.mktemp("sentinel")) as watched:
        yield watched


@pytest.fixture
def watched(shared: Watched) -> Watched:
    for server in shared.servers.values():
        if server.process is None:
            shared.bring_back(server)
        with client_of(server.port) as client:  # as a test that has failed may have left them
            client.config_set("masteruser", "")
            client.config_set("masterauth", "")
    shared.await_pair()
    return shared


@pytest.fixture
def rig(watched: Watched) -> Iterator[RedisRig]:
    rig = RedisRig(log_settings(watched.url, append_seconds_max=15.0))
    yield rig
    rig.close()


class Writer(threading.Thread):
    """Appends groups until it is stopped; a group that was not acknowledged is never sent again."""

    def __init__(self, log: RedisStreamsLog) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[bytes] = []
        self.errors: list[BaseException] = []
        self._log = log
        self._stopping = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            values = [b"%d" % (number + place) for place in range(GROUP)]
            number += GROUP
            try:
                self._log.append([(0, value) for value in values])
            except SluiceError as error:
                self.errors.append(error)
                self._stopping.wait(0.02)
            else:
                self.acknowledged += values

    def await_more(self, events: int) -> None:
        goal = len(self.acknowledged) + events
        wait_until(
            lambda: len(self.acknowledged) >= goal,
            f"{events} more are acknowledged; the last error: {self.errors[-1:]}",
            seconds_max=WAIT_SECONDS_MAX,
        )

    def stop(self) -> None:
        self._stopping.set()
        self.join(WAIT_SECONDS_MAX)


def test_a_master_killed_under_appends_loses_no_acknowledged_event(watched: Watched, rig: RedisRig) -> None:
    # Given a writer whose events a replica must have
    rig.settings = dataclasses.replace(rig.settings, log_replicas_min=1)
    log = rig.open()
    recovered(log.prepare, seconds_max=WAIT_SECONDS_MAX)
    writer = Writer(log)
    writer.start()
    try:
        writer.await_more(10 * GROUP)
        # When the master is killed, and comes back as the replica of the one that the sentinels promoted
        killed = watched.master()
        watched.fail_over_killed()
        watched.bring_back(killed)
        # Then events are accepted again
        writer.await_more(10 * GROUP)
    finally:
        writer.stop()
    # And each that was acknowledged is there
    values = set(read_again(rig.open(), 0))
    assert [value for value in writer.acknowledged if value not in values] == []
    assert writer.errors  # while there was no master, or no replica
    reader = rig.open()
    assert recovered(reader.identity).began_by == "a replica took the place of its master"
    assert [position.lost for position in reader.positions()] == [0, 0, 0, 0]


def test_a_promoted_replica_that_lacks_events_is_noticed_and_the_loss_counted(
    watched: Watched, rig: RedisRig, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a log with a single copy, whose replica stops to follow
    lowest_offsets = ScriptedLowestOffsets()
    log = rig.open(lowest_offsets)
    recovered(log.prepare, seconds_max=WAIT_SECONDS_MAX)
    log.append([(0, b"kept")] * 9)
    master = watched.master()
    with client_of(master.port) as client:
        wait_until(lambda: _has_all(client), "the replica has all", seconds_max=WAIT_SECONDS_MAX)
    recovered(log.identity)  # a master gets another replication id with its first replica
    with client_of(watched.other(master).port) as client:
        client.config_set("masteruser", "nobody")
        client.config_set("masterauth", "wrong")
    with client_of(master.port) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    # When events are accepted after that, and the master dies
    log.append([(0, b"lost")] * 400)
    lowest_offsets.lowest_offsets = {0: 109}  # a hundred of them are stored
    killed = watched.master()
    promoted = watched.fail_over_killed(down_seconds=6, before=master)
    with caplog.at_level(logging.WARNING):
        recovered(lambda: log.append([(0, b"new")]), seconds_max=WAIT_SECONDS_MAX)
    # Then the failover is named, and the loss is counted
    assert "a replica has taken the place of its master" in caplog.text
    reader = rig.open(lowest_offsets)
    reader.identity()
    assert [position.lost for position in reader.positions()] == [300, 0, 0, 0]
    # And no stored offset is used again
    batch = must_read(reader, 0, 10)
    assert (batch.offset, batch.gap_from, batch.values) == (109, 9, [b"new"])
    with client_of(promoted.port) as client:
        client.config_set("masteruser", "")
        client.config_set("masterauth", "")
    assert killed.process is None


def test_a_planned_failover_is_followed_by_the_control_store_and_by_celery(
    watched: Watched, settings: Settings, tmp_path: Path
) -> None:
    # Given a control server behind sentinels, and a worker
    settings = dataclasses.replace(settings, redis_url=watched.url, append_seconds_max=15.0, drain_run_seconds_max=0.5)
    migrate(settings)
    store, app, log = wiring.make_control_store(settings), make_app(settings), wiring.make_log(settings)
    log_id = recovered(log.identity, seconds_max=WAIT_SECONDS_MAX).log_id
    storage = wiring.make_storage(settings)
    worker = batches_worker(settings, tmp_path).start()

    def is_stored(number: int) -> bool:
        """Whether a worker, which knows of its work by a hint only, has stored the event with this number."""
        send_hint(app, 0, hint=None)  # one that can't be sent is logged
        return storage.offsets.stored_offsets(log_id).get(0, 0) > number

    try:
        repeated(lambda: store.restore([], actor="test"))  # before that, a worker does not know that nothing is paused
        append_surely(log, record(0))
        wait_until(lambda: is_stored(0), "the worker drains", seconds_max=WAIT_SECONDS_MAX)
        repeated(lambda: store.pause(PauseReason.LOG_GAP, actor="ann", why="before", partition=1))
        # When another server becomes the master, while both run on
        promoted = watched.fail_over_planned()
        # Then the worker takes hints from it
        append_surely(log, record(1))
        wait_until(lambda: is_stored(1), "the worker drains again", seconds_max=WAIT_SECONDS_MAX)
        wait_until(lambda: answers(app), "the worker answers", seconds_max=WAIT_SECONDS_MAX)
        # And the control store is there
        assert [pause.why for pause in repeated(store.state).pauses or ()] == ["before"]
        repeated(lambda: store.pause(PauseReason.POISON, actor="bob", why="after", partition=2))
        with client_of(promoted.port) as client:
            assert client.info("replication")["role"] == "master"
            assert any(b"after" in value for value in client.hvals(f"{settings.key_prefix}{KEY_PAUSE}"))
    finally:
        worker.stop()
        log.close()
        storage.close()


def append_surely(log: EventLog, value: bytes) -> None:
    """Append at least once, as a client that repeats an event does."""

    def is_appended() -> bool:
        try:
            log.append([(0, value)])
        except SluiceError:
            return False
        return True

    wait_until(is_appended, "the log accepts the event", seconds_max=WAIT_SECONDS_MAX)


def repeated(call: Callable[[], Any]) -> Any:
    """What a call of the control store returns once that answers: a busy disk delays it."""
    found: list[Any] = []

    def is_answered() -> bool:
        try:
            found.append(call())
        except StoreUnavailableError:
            return False
        return True

    wait_until(is_answered, "the control store answers", seconds_max=WAIT_SECONDS_MAX)
    return found[0]


def answers(app: Any) -> bool:
    """Whether a worker answers a remote command, which goes by PUBLISH."""
    try:
        return bool(app.control.inspect(timeout=2.0).ping())
    except OperationalError:
        return False


def _has_all(client: "object") -> bool:
    facts = client.info("replication")  # type: ignore[attr-defined]
    return bool(facts["slave0"]["offset"] == facts["master_repl_offset"])
