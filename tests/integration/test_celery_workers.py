"""The real workers and Beat on servers of their own: drains, pauses, the breaker, and processes that die or freeze."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from checks.testbed.database import ask
from checks.testbed.processes import ROOT, Program, batches_worker, beat, control_worker, supervised
from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX, least_seconds, wait_until
from pipeline import wiring
from pipeline.errors import StoreUnavailableError
from pipeline.event import Event, encode_record, partition_of, record_head
from pipeline.names import AlarmCode, BreakerState, ControlEventKind, PauseReason, Queue, SinkName
from pipeline.ports.control import ControlState
from pipeline.settings import Settings
from stack.servers import Server
from support.event_logs import patient_log
from support.lean import LEAN
from support.servers import own_servers
from tasks.app import make_app
from tasks.remote_client import user_at_host
from tasks.standstill import Workers

FREEZES_MAX = 3
TICKS_MAX = 16


@dataclass
class Rig:
    """Workers, their servers, and a producer that appends to the log directly."""

    settings: Settings
    postgres: Server
    control_redis: Server
    batches: Program
    control: Program
    beat: Program
    appended: int = 0
    remedies: int = 0  # that workers needed since they took nothing, by the tests that made them deaf

    def __post_init__(self) -> None:
        self.store = wiring.make_control_store(self.settings)
        self.events = wiring.make_control_events(self.settings)
        self.log = patient_log(self.settings)
        self.app = make_app(self.settings)

    def append(self, count: int) -> None:
        partitions = self.log.identity().partitions
        entries = []
        head = record_head(1_700_000_000_000, "tests-1")
        for number in range(self.appended, self.appended + count):
            event = Event(f"c{number % 50}", "INFO", f"message {number}", "test", 1_700_000_000_000, f"id-{number}")
            entries.append((partition_of(event.correlation_id, partitions), encode_record(event, head)))
        self.log.append(entries)
        self.appended += count

    def stored(self) -> int:
        """Rows, which are distinct events by the table's primary key; -1 where PostgreSQL does not answer."""
        try:
            with (
                contextlib.closing(psycopg2.connect(self.postgres.url, connect_timeout=2)) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("SELECT count(*) FROM log_events")
                row = cursor.fetchone()
                assert row is not None
                return int(row[0])
        except psycopg2.Error:
            return -1

    def remedies_said(self, program: Program) -> int:
        return program.log().count("tasks.queue_watch: this worker has taken nothing for")

    def state(self) -> ControlState | None:
        try:
            return self.store.state()
        except StoreUnavailableError:
            return None

    def reasons(self) -> list[PauseReason] | None:
        state = self.state()
        if state is None or state.pauses is None:
            return None
        return [pause.reason for pause in state.pauses]

    def wait(self, condition: object, what: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        try:
            wait_until(condition, what, seconds_max=seconds_max)
        except AssertionError as error:
            logs = "\n".join(f"--- {one.name}\n{one.log()[-2000:]}" for one in (self.batches, self.control))
            raise AssertionError(f"{error}\n{self.state()}\n{logs}") from None

    def wait_stored(self, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self.wait(lambda: self.stored() == self.appended, f"{self.appended} events are stored", seconds_max=seconds_max)

    def wait_running(self, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self.wait(lambda: self.reasons() == [], "no reason to pause holds", seconds_max=seconds_max)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder: Path = tmp_path_factory.mktemp("workers")
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(own_servers(folder))
        settings = servers.settings(
            drain_run_seconds_max=3.0,
            drain_hard_seconds_max=26.0,  # a run may exceed its 3 s by five failures of a frozen PostgreSQL
            drain_stalled_seconds_max=4.0,
            no_progress_seconds_max=2.0,
            regulate_seconds=1.0,
            queue_untaken_seconds_max=4.0,
        )
        batches = batches_worker(settings, folder, app="checks.testbed.deaf_app")
        control = control_worker(settings, folder, app="checks.testbed.deaf_app")
        ticker = beat(settings, folder)
        for program in (batches, control, ticker):
            # A package of others is called `tests` too.
            program.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(LEAN)])
            stack.callback(program.stop)
            program.start()
        stack.enter_context(supervised(batches, control, ticker))
        rig = Rig(settings, servers.postgres, servers.control_redis, batches, control, ticker)
        rig.wait_running()
        yield rig


@pytest.fixture
def rig(started: Rig) -> Iterator[Rig]:
    """The running rig; each test leaves it running, with everything stored."""
    started.append(10)
    started.wait_stored()
    yield started
    # However the test ended, the next one finds all of it running
    for one in (started.postgres, started.control_redis, started.batches, started.control, started.beat):
        one.ensure_running()
    if started.reasons() == [PauseReason.OPERATOR]:
        started.app.control.broadcast("resume_consumption", {"words": ["the test has ended"]})
    started.wait_running()
    started.wait_stored()
    # No pause, outage or long task is taken for a worker that takes nothing.
    expected, started.remedies = started.remedies, sum(map(started.remedies_said, (started.batches, started.control)))
    assert started.remedies == expected


def test_an_event_is_stored_soon_after_its_append(rig: Rig) -> None:
    log = redis.Redis.from_url(rig.settings.event_log_url)

    def seconds_to_store() -> float:
        # Given drains that wait for events, at the log itself
        rig.wait(lambda: log.info("clients")["blocked_clients"] > 0, "a drain waits")
        # When a single event comes
        started = time.monotonic()
        rig.append(1)
        rig.wait_stored()
        return time.monotonic() - started

    # Then it is stored at once, not with the next tick of anything; some may fall into busy moments of the machine
    assert least_seconds(seconds_to_store, below=0.5) < 0.5


def test_a_pause_by_hand_holds_against_everything_but_a_resume(rig: Rig) -> None:
    # Given an operator's pause
    rig.app.control.broadcast("pause_consumption", {"words": ["test"]})
    rig.wait(lambda: rig.reasons() == [PauseReason.OPERATOR], "paused")
    rig.wait(lambda: "consumption paused" in rig.batches.log(), "the worker has cancelled the queue")
    # A drain that waited for events when the pause came asks again before it stores, and ends.
    drains = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
    rig.wait(lambda: ask(rig.postgres.url, drains) == [(0,)], "all drains have ended")
    assert rig.reasons() == [PauseReason.OPERATOR]
    stored = rig.stored()
    rig.append(100)

    def assert_still_paused() -> None:
        # A hint sent by hand is taken out of the queue only by a worker that consumes.
        rig.app.send_task("sluice.drain", args=(0,), queue="batches", expires=60)
        assert _stays(lambda: rig.stored() == stored, seconds=1.5), "stored something while paused"

    assert_still_paused()
    # When somebody adds the consumer by hand, the store is flushed, or the worker is killed and starts again
    assert rig.app.control.add_consumer("batches", reply=True, timeout=WAIT_SECONDS_MAX, limit=2)
    assert_still_paused()
    redis.Redis.from_url(rig.control_redis.url).flushall()
    rig.wait(lambda: rig.reasons() == [PauseReason.OPERATOR], "the pause is restored from PostgreSQL")
    assert_still_paused()
    rig.batches.kill()
    starts = rig.batches.log().count(" ready.")
    rig.batches.start()
    rig.wait(lambda: rig.batches.log().count(" ready.") > starts, "the worker is back")
    assert_still_paused()
    # Then it takes a resume to go on
    rig.app.control.broadcast("resume_consumption", {"words": ["done"]})
    rig.wait_stored()
    told = [(event.kind, event.actor) for event in rig.events.last(50)]
    assert (ControlEventKind.RESUMED, user_at_host()) in told


def _stays(condition: object, *, seconds: float) -> bool:
    """Whether a condition holds all the time: the one wait whose end is the clock's."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():  # type: ignore[operator]
            return False
        time.sleep(0.05)  # noqa: TID251
    return True


def test_a_frozen_postgres_opens_the_breaker_and_a_thawed_one_closes_it(rig: Rig) -> None:
    # Given PostgreSQL and its backends stopped under load
    rig.postgres.freeze()
    frozen_at = time.monotonic()
    try:
        rig.append(500)
        # Then the breaker opens, with the pause and the floor rate in the same step
        rig.wait(lambda: rig.reasons() == [PauseReason.BREAKER], "the breaker opens")
        assert time.monotonic() - frozen_at < 12 + BUSY_SECONDS
        state = rig.state()
        assert state is not None
        assert state.rate is not None
        assert state.rate.rate == rig.settings.rate_min
        assert state.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN)
        rig.wait(lambda: (s := rig.state()) is not None and s.breaker is BreakerState.HALF_OPEN, "the prober asks")
    finally:
        rig.postgres.thaw()
    # And all of it recovers without a hand
    rig.wait_running()
    rig.wait_stored()
    rig.wait(
        lambda: (
            (state := rig.state()) is not None and state.rate is not None and state.rate.rate == rig.settings.rate_max
        ),
        "the whole rate again",
    )
    kinds = [event.kind for event in rig.events.last(50)]
    assert ControlEventKind.BREAKER_OPENED in kinds
    assert ControlEventKind.BREAKER_CLOSED in kinds


def test_a_killed_postgres_recovers(rig: Rig) -> None:
    rig.postgres.kill()
    try:
        rig.append(500)
        rig.wait(lambda: rig.reasons() == [PauseReason.BREAKER], "the breaker opens")
        rig.append(500)
    finally:
        rig.postgres.start()
    rig.wait_running()
    rig.wait_stored()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_broker_that_was_away_costs_nothing(rig: Rig, how: str) -> None:
    # Given Redis (queues, control state) away for longer than Celery's time-outs at 2 s
    if how == "killed":
        rig.control_redis.kill()
    else:
        rig.control_redis.freeze()
    try:
        rig.append(300)
        stored = rig.stored()
        assert _stays(lambda: rig.stored() == stored, seconds=3), "committed without raising the lowest offset first"
    finally:  # When it is back
        rig.control_redis.ensure_running()
    # Then the same workers go on
    rig.wait_stored()
    rig.append(300)
    rig.wait_stored()


def test_a_killed_child_and_a_killed_parent_lose_nothing(rig: Rig) -> None:
    rig.append(20_000)
    rig.wait(lambda: bool(rig.batches.children()), "a child runs")
    with contextlib.suppress(psutil.NoSuchProcess):
        rig.batches.children()[0].kill()
    rig.wait_stored()
    rig.append(20_000)
    rig.batches.kill()
    rig.batches.start()
    rig.wait_stored()


def test_frozen_children_are_got_rid_of(rig: Rig) -> None:
    # Given four of the six children stopped, of which two at least drain: PostgreSQL keeps their locks. Between two
    # hints they may all be idle, on a busy machine: then once more.
    for _ in range(FREEZES_MAX):
        if ControlEventKind.DRAINER_TERMINATED in _kinds_while_frozen(rig):
            return
    pytest.fail(f"no drainer was ended in {FREEZES_MAX} tries")


def _kinds_while_frozen(rig: Rig) -> list[ControlEventKind]:
    """Control events until all is stored that comes while children are stopped."""
    before = {event.id for event in rig.events.last(1000)}
    frozen = rig.batches.children()[: rig.settings.log_partitions]
    for child in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
    try:
        # Then regulate ends their backends, and others store what they held
        rig.append(1_000)
        rig.wait_stored()
    finally:
        for child in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):  # past its hard time limit the worker has killed it
                child.resume()
    return [event.kind for event in rig.events.last(1000) if event.id not in before]


def test_a_partition_that_stands_still_is_named_with_the_reason(rig: Rig) -> None:
    def said() -> str:
        state = rig.state()
        alarms = () if state is None or state.rate is None else state.rate.alarms
        return " ".join(alarm.what for alarm in alarms if alarm.code == AlarmCode.STANDS_STILL)

    # Given a worker that runs, of which Celery knows which partitions it drains
    rig.wait(
        lambda: (
            "its drain has begun" in Workers(rig.app, SinkName.POSTGRESQL, rig.settings.drains_max).why_not_drained(0)
        ),
        "the drain of a partition is seen",
    )
    # When all of it is frozen, while events come
    rig.batches.freeze()
    try:
        rig.append(100)
        # Then the control loop says that nobody takes them, though the lag is small
        rig.wait(lambda: "no worker takes batches" in said() or "frozen" in said(), "the reason is named")
    finally:
        rig.batches.thaw()
    # And it is over with the cause
    rig.wait_stored()
    rig.wait(lambda: not said(), "nothing stands still")


def test_drains_hand_over_to_each_other_without_beat(rig: Rig) -> None:
    # Given no Beat, for longer than a run of a drain without records lasts
    rig.beat.stop()
    try:
        assert _stays(lambda: True, seconds=2.5 * rig.settings.drain_run_seconds_max)
        # Then an event is stored all the same
        rig.append(4)
        rig.wait_stored()
    finally:
        rig.beat.start()


def test_a_flushed_control_store_is_rebuilt(rig: Rig) -> None:
    redis.Redis.from_url(rig.control_redis.url).flushall()
    rig.append(500)
    rig.wait_running()
    rig.wait_stored()
    assert ControlEventKind.STATE_RESTORED in [event.kind for event in rig.events.last(50)]


def test_a_second_beat_is_harmless(rig: Rig, tmp_path: Path) -> None:
    # Given two Beats
    second = beat(rig.settings, tmp_path).start()
    try:
        first_version = _version(rig)
        wait_until(lambda: _version(rig) != first_version, "a tick")
        # Then ticks still come once a period. Two Beats without a lease would need half of it; one tick may be late.
        # (on a busy machine the first of them may have taken long: then those after it count)
        times: list[float] = []

        def come_once_a_period() -> bool:
            state = rig.state()
            if state is not None and state.rate is not None and state.rate.published_at not in times:
                times.append(state.rate.published_at)
            return len(times) > 3 and times[-1] - times[-4] > 0.6 * 3 * rig.settings.regulate_seconds

        rig.wait(lambda: come_once_a_period() or len(times) == TICKS_MAX, "ticks come")
        assert come_once_a_period(), times
    finally:
        second.stop()


def test_whatever_stands_in_the_queue_the_worker_goes_on(rig: Rig) -> None:
    # Given lines in the queue that are no messages, messages that are no tasks, and tasks that make no sense
    pid = rig.batches.pid
    client = redis.Redis.from_url(rig.control_redis.url)
    key = f"{rig.settings.key_prefix}batches"
    rig.app.send_task("sluice.drain", args=(0,), queue="batches")
    client.lpush(
        key, "no JSON", "[]", "null", '"text"', "{}", b"\xff\xfe", '{"headers": {}, "properties": {}}', "[" * 5000
    )
    for arguments in ((-3,), ("x",), (10**6,), (True,), (None,), (), (1, None, 2)):
        rig.app.send_task("sluice.drain", args=arguments, queue="batches")
    rig.app.send_task("sluice.drain", args=(0,), kwargs={"hint": "x" * 3_000_000}, queue="batches")
    rig.app.send_task("sluice.nothing", queue="batches")
    rig.app.send_task("celery.backend_cleanup", queue="batches")
    rig.app.send_task("sluice.drain", args=(0,), queue="batches", serializer="pickle")
    rig.app.send_task("sluice.drain", args=(0,), queue="batches", countdown=86_400)
    rig.app.send_task("sluice.drain", args=(0,), queue="batches", expires=-60)
    # When the worker comes to them
    counters = wiring.make_counters(rig.settings)

    def dropped() -> dict[str, float]:
        return {n.partition(":")[2]: c for n, c in counters.read().totals.items() if n.startswith("dropped:")}

    # (hints of the system's own expire too, where the worker stands still for long)
    expected = {"malformed": 10, "unknown_task": 2, "arguments": 7}

    def counts() -> dict[str, float]:
        return {reason: count for reason, count in dropped().items() if reason in expected}

    rig.wait(
        lambda: dropped().get("expired", 0) >= 1 and sum(counts().values()) >= sum(expected.values()),
        f"all of it was thrown away: {dropped()}",
    )
    # Then it counted each, said it once, and goes on; a partition that there is none of does not come again
    assert counts() == expected
    assert rig.batches.log().count("dropped a message from the queue (malformed)") == 1
    assert rig.batches.pid == pid
    rig.append(50)
    rig.wait_stored()
    assert _stays(lambda: counts() == expected, seconds=0.5)


def test_celerys_own_commands_leave_no_drain_standing(rig: Rig) -> None:
    # Given commands of Celery's that would stop drains, as Flower's forms send them
    replies = {
        command: rig.app.control.broadcast(command, arguments=arguments, reply=True, timeout=WAIT_SECONDS_MAX, limit=2)
        for command, arguments in (
            ("rate_limit", {"task_name": "sluice.drain", "rate_limit": "1/h"}),
            ("time_limit", {"task_name": "sluice.drain", "hard": 0.001}),
            ("pool_shrink", {"n": rig.settings.log_partitions + 2}),
            ("cancel_consumer", {"queue": "control"}),
            ("add_consumer", {"queue": "batches"}),
        )
    }
    # Then each worker refuses, and says what to use instead
    for command, answers in replies.items():
        assert len(answers or ()) == 2, command
        assert all(f"Sluice takes no {command}" in str(answer) for answer in answers or ()), answers
    # And drains go on beyond the hints that were under way
    rig.app.control.broadcast("rate_limit", arguments={"task_name": "sluice.drain", "rate_limit": "0"})
    assert _stays(lambda: True, seconds=2.5 * rig.settings.drain_run_seconds_max)
    rig.append(50)
    rig.wait_stored()


@pytest.mark.parametrize(("how", "is_ended"), [("unsubscribed", False), ("hung", True)])
def test_a_worker_that_takes_nothing_is_noticed_and_takes_hints_again(rig: Rig, how: str, is_ended: bool) -> None:
    def said() -> list[str]:
        state = rig.state()
        alarms = () if state is None or state.rate is None else state.rate.alarms
        return [alarm.what for alarm in alarms if "has taken nothing for" in alarm.what]

    # Given a worker that takes nothing any more, by a cause that Celery does not know of
    pid, lines = rig.batches.pid, rig.remedies_said(rig.batches)
    queues = wiring.make_queues(rig.settings)
    rig.app.control.broadcast("take_nothing", arguments={"queue": "batches", "how": how})
    # When hints wait for it, since its drains have handed over
    rig.remedies += 1 + is_ended
    rig.wait(lambda: rig.remedies_said(rig.batches) == lines + 1 + is_ended, "it is noticed")
    # Then health says it for some ticks, of a worker that goes on
    if not is_ended:
        rig.wait(lambda: bool(said()), "health says it")
    # And hints reach it again
    rig.wait(lambda: queues.waiting(Queue.BATCHES) == 0, "the hints are taken")
    rig.append(50)
    rig.wait_stored()
    # And a line has said it once for each remedy
    assert (rig.batches.pid != pid) == is_ended
    assert rig.remedies_said(rig.batches) == lines + 1 + is_ended


def test_the_control_loop_goes_on_where_its_worker_takes_nothing(rig: Rig) -> None:
    # Given a control worker that takes nothing any more
    lines = rig.remedies_said(rig.control)
    rig.remedies += 1
    rig.app.control.broadcast("take_nothing", arguments={"queue": "control", "how": "unsubscribed"})
    rig.wait(lambda: rig.remedies_said(rig.control) == lines + 1, "it is noticed")
    # Then the rate is published again
    version = _version(rig)
    rig.wait(lambda: _version(rig) != version, "a rate is published")


def _version(rig: Rig) -> int | None:
    state = rig.state()
    return state.rate.version if state is not None and state.rate is not None else None
