"""Group commit, against the log in memory behind a gate."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

import ingest.appender as appender_module
from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX
from checks.testbed.waiting import eventually_in_loop as until
from ingest.appender import Appender
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import (
    AppendBufferFullError,
    LogFullError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogPartialError,
    LogUnavailableError,
    SluiceError,
)
from pipeline.log.memory import MemoryLog
from pipeline.metrics import IngestMetrics
from pipeline.ports.log import LogIdentity, MissingReplicas, PartitionPosition, SetUpFault
from pipeline.settings import Settings


class _GatedLog(MemoryLog):
    """A log whose appends wait at a gate, and fail as they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.groups: list[int] = []
        self.failures: list[Exception] = []
        self.failures_later: list[Exception | None] = []  # one for each append that follows
        self.faults: tuple[SetUpFault, ...] = ()
        self.unprepared = ""
        self.missing: MissingReplicas | None = None

    def identity(self) -> LogIdentity:
        return replace(super().identity(), faults=self.faults, missing_replicas=self.missing)

    def prepare(self) -> None:
        if self.unprepared:
            raise LogUnavailableError(self.unprepared)
        super().prepare()

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        self.groups.append(len(entries))
        assert self.gate.wait(WAIT_SECONDS_MAX)
        if self.failures:
            raise self.failures.pop(0)
        failure = self.failures_later.pop(0) if self.failures_later else None
        if failure is not None:
            raise failure
        super().append(entries)


class _Rig:
    def __init__(self, **changes: object) -> None:
        self.log = _GatedLog()
        self.settings = replace(Settings(append_seconds_max=30.0), **changes)  # type: ignore[arg-type]
        self.metrics = IngestMetrics(CollectorRegistry())
        self.appender = Appender(self.log, self.settings, SystemClock(), self.metrics)

    async def start(self) -> "_Rig":
        self.appender.start(asyncio.get_running_loop())
        await until(lambda: self.appender.status(time.monotonic()).answers)
        return self

    def append(self, count: int = 1, *, size: int = 10) -> "asyncio.Future[None]":
        return self.appender.append([(0, b"x" * size)] * count, count * size)

    def append_to(self, *partitions: int) -> "asyncio.Future[None]":
        return self.appender.append([(partition, b"x") for partition in partitions], len(partitions))

    def is_idle(self) -> bool:
        """Whether the thread is done with its last group and waits for the first request of the next one."""
        return self.appender._awaited == 1

    def stored(self) -> int:
        return sum(position.end for position in self.log.positions())


@pytest.fixture
async def rigs() -> AsyncIterator[Callable[..., "asyncio.Future[_Rig]"]]:
    made: list[_Rig] = []

    def make(**changes: object) -> "asyncio.Future[_Rig]":
        rig = _Rig(**changes)
        made.append(rig)
        return asyncio.ensure_future(rig.start())

    yield make
    for rig in made:
        rig.log.gate.set()
        await rig.appender.close(seconds_max=WAIT_SECONDS_MAX)


Rigs = Callable[..., "asyncio.Future[_Rig]"]


async def test_what_arrives_during_an_append_is_the_next_group(rigs: Rigs) -> None:
    rig = await rigs()
    rig.log.gate.clear()
    first = rig.append()
    await until(lambda: rig.log.groups == [1])
    others = [rig.append(3) for _ in range(10)]
    rig.log.gate.set()
    await asyncio.gather(first, *others)
    assert rig.log.groups == [1, 30]
    assert rig.stored() == 31
    assert (rig.appender.waiting_events, rig.appender.waiting_bytes) == (0, 0)


@pytest.fixture
def patient_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not take a stall of the machine for a time without requests."""
    monkeypatch.setattr(appender_module, "PING_SECONDS", 2 * WAIT_SECONDS_MAX)


@pytest.mark.usefixtures("patient_thread")
async def test_the_first_of_a_group_waits_for_as_much_company_as_the_last_had(rigs: Rigs) -> None:
    # Given a last group of ten requests, and a time for company that no machine needs
    rig = await _after_a_group_of_ten(rigs)
    _wait_for_company(rig, 2 * WAIT_SECONDS_MAX)
    # When ten more come one by one, they go together, and as soon as they are ten
    futures = []
    for _ in range(10):
        futures.append(rig.append())
        await asyncio.sleep(0.005)
    await asyncio.wait_for(asyncio.gather(*futures), WAIT_SECONDS_MAX)
    assert rig.log.groups == [1, 10, 10]


@pytest.mark.usefixtures("patient_thread")
async def test_one_that_comes_alone_after_ten_waits_for_its_time(rigs: Rigs) -> None:
    # Given a last group of ten requests
    rig = await _after_a_group_of_ten(rigs)
    _wait_for_company(rig, 1.0)
    # When one comes alone, it waits for no longer than that time
    started = time.monotonic()
    await rig.append()
    assert 0.9 < time.monotonic() - started < 1.0 + BUSY_SECONDS
    assert rig.log.groups == [1, 10, 1]


async def test_one_that_comes_alone_after_another_does_not_wait(rigs: Rigs) -> None:
    rig = await rigs()
    _wait_for_company(rig, 2 * WAIT_SECONDS_MAX)
    for number in range(1, 4):
        await asyncio.wait_for(rig.append(), WAIT_SECONDS_MAX)
        await until(rig.is_idle)
        assert rig.log.groups == [1] * number


def _wait_for_company(rig: _Rig, seconds: float) -> None:
    """How long the first of a group waits from now on; it may be more than a setting allows."""
    object.__setattr__(rig.settings, "append_group_seconds_max", seconds)


async def _after_a_group_of_ten(rigs: Rigs) -> _Rig:
    """A rig whose last group had ten requests, and whose thread waits for the next one."""
    rig = await rigs()
    rig.log.gate.clear()
    futures = [rig.append()]
    await until(lambda: rig.log.groups == [1])
    futures += [rig.append() for _ in range(10)]
    rig.log.gate.set()
    await asyncio.gather(*futures)
    await until(rig.is_idle)
    return rig


async def test_groups_are_bounded_and_requests_are_never_cut(rigs: Rigs) -> None:
    rig = await rigs(append_group_events_max=10)
    rig.log.gate.clear()
    futures = [rig.append()]
    await until(lambda: rig.log.groups == [1])
    futures += [rig.append(4), rig.append(4), rig.append(4), rig.append(25), rig.append(1)]
    rig.log.gate.set()
    await asyncio.gather(*futures)
    assert rig.log.groups == [1, 8, 4, 25, 1]


async def test_the_buffer_is_bounded_in_events_and_bytes(rigs: Rigs) -> None:
    rig = await rigs(append_buffer_events_max=10, append_buffer_bytes_max=1 << 20)
    rig.log.gate.clear()
    futures = [rig.append(6)]
    with pytest.raises(AppendBufferFullError):
        rig.append(5)
    futures.append(rig.append(4))
    assert isinstance(rig.appender.blocked(), AppendBufferFullError)
    rig.log.gate.set()
    await asyncio.gather(*futures)
    rig.log.gate.clear()
    futures = [rig.append(1, size=1 << 19)]
    with pytest.raises(AppendBufferFullError):
        rig.append(1, size=(1 << 19) + 1)
    rig.log.gate.set()
    await asyncio.gather(*futures)
    # One that is larger than the buffer passes alone
    await rig.append(50)


async def test_a_group_that_was_not_begun_is_withdrawn(rigs: Rigs) -> None:
    rig = await rigs(append_seconds_max=4.0)
    rig.log.gate.clear()
    begun = rig.append()
    await until(lambda: rig.log.groups == [1])
    queued = rig.append(7)
    started = time.monotonic()
    # When time is up, the one is unknown and the other was never written
    with pytest.raises(LogIndeterminateError):
        await begun
    with pytest.raises(LogUnavailableError):
        await queued
    assert time.monotonic() - started < 7.9  # one after the other: 8 s
    assert rig.appender.waiting_events == 1, "the one that runs still counts"
    rig.log.gate.set()
    await rig.append(2)
    assert rig.log.groups == [1, 2]
    assert rig.stored() == 3
    assert (rig.appender.waiting_events, rig.appender.waiting_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (LogIndeterminateError(), LogIndeterminateError),
        (LogUnavailableError("gone"), LogUnavailableError),
        (LogFullError(), LogFullError),
        (LogMisconfiguredError(), LogMisconfiguredError),
        (ZeroDivisionError(), LogIndeterminateError),  # a defect: what it did before is not known
    ],
)
async def test_every_request_of_a_group_is_told_the_truth(
    rigs: Rigs, raised: Exception, told: type[SluiceError]
) -> None:
    rig = await rigs()
    rig.log.gate.clear()
    first = rig.append()
    await until(lambda: rig.log.groups == [1])
    futures = [rig.append() for _ in range(3)]
    rig.log.failures = [raised, raised]
    rig.log.gate.set()
    for future in (first, *futures):
        with pytest.raises(told) as caught:
            await future
        assert caught.value is not raised
    await until(lambda: _takes(rig))


def _takes(rig: _Rig) -> bool:
    try:
        rig.append()
    except SluiceError:
        return False
    return True


async def test_a_log_that_is_away_is_refused_at_once_and_found_again(rigs: Rigs) -> None:
    rig = await rigs()
    rig.log.stop()
    with pytest.raises(LogUnavailableError):
        await rig.append()
    await until(lambda: not rig.appender.status(time.monotonic()).answers)
    assert isinstance(rig.appender.blocked(), LogUnavailableError)
    groups = len(rig.log.groups)
    with pytest.raises(LogUnavailableError):
        rig.append()
    assert len(rig.log.groups) == groups
    rig.log.start()
    await until(lambda: _takes(rig))


async def test_a_full_log_is_not_tried_again_at_once(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender_module, "FULL_SECONDS", WAIT_SECONDS_MAX)
    rig = await rigs()
    rig.log.failures = [LogFullError()]
    with pytest.raises(LogFullError):
        await rig.append()
    assert isinstance(rig.appender.blocked(), LogFullError)
    with pytest.raises(LogFullError):
        rig.append()
    assert rig.log.groups == [1]


async def test_a_log_that_was_full_is_tried_again(rigs: Rigs) -> None:
    rig = await rigs()
    rig.log.failures = [LogFullError()]
    with pytest.raises(LogFullError):
        await rig.append()
    await until(lambda: _takes(rig))


async def test_what_is_queued_behind_a_failure_does_not_wait_for_its_time(rigs: Rigs) -> None:
    rig = await rigs(append_seconds_max=30)
    rig.log.gate.clear()
    first = rig.append()
    await until(lambda: rig.log.groups == [1])
    queued = rig.append()
    rig.log.failures = [LogIndeterminateError()]
    rig.log.stop()
    rig.log.gate.set()
    with pytest.raises(LogIndeterminateError):
        await asyncio.wait_for(first, rig.settings.append_seconds_max / 2)
    with pytest.raises(LogUnavailableError):
        await asyncio.wait_for(queued, rig.settings.append_seconds_max / 2)


async def test_a_failed_append_counts_for_a_while_even_where_the_log_answers(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender_module, "FAILED_SECONDS", WAIT_SECONDS_MAX)
    rig = await rigs()
    rig.log.failures = [LogUnavailableError("no lowest offsets")]
    with pytest.raises(LogUnavailableError):
        await rig.append()
    # Given that the log said who it is since
    await until(lambda: rig.appender.status(time.monotonic() + 2 * WAIT_SECONDS_MAX).answers)
    # Then it is tried again, but not called ready before that went well, or some time has passed
    status = rig.appender.status(time.monotonic())
    assert (status.answers, status.problem) == (False, "no lowest offsets")
    await rig.append()
    assert rig.appender.status(time.monotonic()).answers


async def test_an_append_that_hangs_shows(rigs: Rigs) -> None:
    rig = await rigs(append_seconds_max=2.0)
    rig.log.gate.clear()
    future = rig.append()
    await until(lambda: rig.log.groups == [1])
    assert rig.appender.status(time.monotonic()).answers
    assert not rig.appender.status(time.monotonic() + 4.1).answers
    with pytest.raises(LogIndeterminateError):
        await future


async def test_before_the_log_was_ever_reached_nothing_is_taken() -> None:
    rig = _Rig()
    rig.log.stop()
    rig.appender.start(asyncio.get_running_loop())
    assert not rig.appender.status(time.monotonic()).answers
    with pytest.raises(LogUnavailableError):
        rig.append()
    with pytest.raises(LogUnavailableError):
        _ = rig.appender.partitions
    rig.log.start()
    await until(lambda: rig.appender.status(time.monotonic()).answers)
    assert rig.appender.partitions == 4
    await rig.append()
    await rig.appender.close(seconds_max=WAIT_SECONDS_MAX)


async def test_close_appends_what_waits(rigs: Rigs) -> None:
    rig = await rigs(append_seconds_max=30)
    rig.log.gate.clear()
    futures = [rig.append() for _ in range(5)]
    closing = asyncio.ensure_future(rig.appender.close(seconds_max=WAIT_SECONDS_MAX))
    await asyncio.sleep(0.02)
    with pytest.raises(LogUnavailableError):
        rig.append()
    rig.log.gate.set()
    await closing
    assert rig.stored() == 5
    assert all(future.done() and future.exception() is None for future in futures)


async def test_close_is_bounded_and_tells_what_it_could_not_do(rigs: Rigs) -> None:
    rig = await rigs(append_seconds_max=30)
    rig.log.gate.clear()
    begun = rig.append()
    await until(lambda: rig.log.groups == [1])
    queued = rig.append()
    started = time.monotonic()
    await rig.appender.close(seconds_max=0.2)
    assert time.monotonic() - started < BUSY_SECONDS
    assert isinstance(begun.exception(), LogIndeterminateError)
    assert isinstance(queued.exception(), LogUnavailableError)


async def test_a_partition_that_takes_nothing_is_the_trouble_of_its_own_events_only(
    rigs: Rigs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = await rigs()
    rig.log.gate.clear()
    first = rig.append_to(0)
    await until(lambda: rig.log.groups == [1])
    # Given a group with events for a partition without a leader, one that did not confirm, and two that are well
    well, dead, silent = rig.append_to(0, 1, 0), rig.append_to(2, 2), rig.append_to(3)
    both, all_of_them = rig.append_to(1, 2), rig.append_to(0, 1, 2, 3)
    failure = LogPartialError({2: LogUnavailableError("no leader"), 3: LogIndeterminateError("not confirmed")})
    rig.log.failures_later = [None, failure]
    rig.log.gate.set()
    await first
    # Then each request is told the truth about its own
    await well
    with pytest.raises(LogUnavailableError, match="no leader"):
        await dead
    with pytest.raises(LogIndeterminateError):
        await silent
    for future in (both, all_of_them):
        with pytest.raises(LogIndeterminateError):
            await future
    # And nobody else is refused, nor is the process out of service
    assert rig.appender.blocked() is None
    assert rig.appender.status(time.monotonic()).answers
    # And it is said once, and once when it is over
    rig.log.failures_later = [failure, None, None]
    with pytest.raises(LogUnavailableError):
        await rig.append_to(2)
    await rig.append_to(2)
    await rig.append_to(3)
    said = [record.__dict__["action"] for record in caplog.records if "partition" in record.__dict__]
    assert said == ["partition_away", "partition_away", "partition_back", "partition_back"]


async def test_many_partitions_that_refuse_events_are_one_line(rigs: Rigs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rig = await rigs()
    failures = LogPartialError({partition: LogUnavailableError("no leader") for partition in range(4)})
    rig.log.failures_later = [failures, None]
    with pytest.raises((LogPartialError, LogUnavailableError)):
        await rig.append_to(*range(4))
    await rig.append_to(*range(4))
    said = [record.getMessage() for record in caplog.records if record.name == "ingest.appender"]
    assert said == [
        "the event log answers",
        "events for 4 partitions are refused (0, 1, 2, …): no leader",
        "the event log accepts events for 4 partitions again (0, 1, 2, …)",
    ]


async def test_partitions_that_were_added_are_used_under_load(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender_module, "LOOK_SECONDS", 0.05)
    rig = await rigs()
    assert rig.appender.partitions == 4
    # When two are added while there is no moment without an append
    rig.log.server.add_partitions(2)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while rig.appender.partitions == 4:
        assert time.monotonic() < deadline
        await rig.append()
    # Then they are used
    assert rig.appender.partitions == 6
    await rig.append_to(4, 5)


async def test_a_log_that_would_lose_events_is_not_started_on_and_a_running_one_is_not_left(
    rigs: Rigs, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a log that is set up so that it loses what it acknowledges
    rig = _Rig()
    rig.log.faults = (SetUpFault("The topic deletes events", "alter it", loses_events=True),)
    rig.appender.start(asyncio.get_running_loop())
    problem = "the event log accepts no events: The topic deletes events: alter it"
    await until(lambda: rig.appender.status(time.monotonic()).problem == problem)
    assert problem in caplog.messages
    with pytest.raises(LogUnavailableError, match="alter it"):
        rig.append()
    # When that is mended, it starts
    rig.log.faults = ()
    await until(lambda: rig.appender.status(time.monotonic()).answers)
    # And when somebody undoes it, or the partitions are fewer than expected, it goes on
    rig.log.faults = (SetUpFault("The topic deletes events", "alter it", loses_events=True),)
    rig.log.stop()
    await until(lambda: not rig.appender.status(time.monotonic()).answers)
    rig.log.start()
    await until(lambda: rig.appender.status(time.monotonic()).answers)
    await rig.append()
    await rig.appender.close(seconds_max=WAIT_SECONDS_MAX)


async def test_a_log_that_is_not_ready_for_the_first_append_does_not_answer_yet(rigs: Rigs) -> None:
    rig = _Rig()
    rig.log.unprepared = "nobody knows what is stored"
    rig.appender.start(asyncio.get_running_loop())
    await until(lambda: rig.appender.status(time.monotonic()).problem == "nobody knows what is stored")
    with pytest.raises(LogUnavailableError, match="nobody knows what is stored"):
        rig.append()
    rig.log.unprepared = ""
    await until(lambda: rig.appender.status(time.monotonic()).answers)
    await rig.append()
    await rig.appender.close(seconds_max=WAIT_SECONDS_MAX)


async def test_a_log_that_lacks_replicas_while_it_is_idle_does_not_answer_any_more(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an idle log whose replicas go away
    monkeypatch.setattr(appender_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(appender_module, "PING_SECONDS", 0.02)
    rig = await rigs()
    rig.log.missing = MissingReplicas("Events are refused: no replica", "the replicas", refuses_events=True)
    rig.log.unprepared = "it has no replica"
    # Then that is known before the next request
    await until(lambda: rig.appender.status(time.monotonic()).problem == "it has no replica")
    rig.log.missing, rig.log.unprepared = None, ""
    await until(lambda: rig.appender.status(time.monotonic()).answers)
    await rig.append()


def test_an_idle_log_is_asked_once_a_period_by_all_readers_of_its_process() -> None:
    # Given an idle log that another client of this process reads once a second
    asked: list[float] = []

    class Counted(_GatedLog):
        def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
            asked.append(clock.monotonic())
            return super().positions(log_id)

    clock, log = ManualClock(), Counted()
    other_reader = MemoryLog(server=log.server)
    appender = Appender(log, Settings(), clock, IngestMetrics(CollectorRegistry()))
    assert appender._ask_identity()

    def check(*, after: float) -> int:
        clock.advance(after)
        before = len(asked)
        appender._ping()
        return len(asked) - before

    assert check(after=1.0) == 1
    # When that one was answered, then this check asks nothing
    appender.note_read(other_reader.identity())
    assert check(after=0.9) == 0
    # When its answer is late, or there was none, then it does
    assert check(after=0.2) == 1
    appender.note_read(other_reader.identity())
    appender.note_read(None)
    assert check(after=0.1) == 1
    # When another log answers, since the log was emptied, then the check notices that as soon as without that reader
    log.server.flush()
    appender.note_read(other_reader.identity())
    assert check(after=0.1) == 1
    assert "is not the same log" in str(appender.status(clock.monotonic()).problem)


@pytest.mark.usefixtures("patient_thread")
async def test_a_log_that_did_not_answer_another_reader_is_checked_at_once(rigs: Rigs) -> None:
    # Given an appender whose next check is far away, also by the last answer
    rig = await rigs()
    await until(rig.is_idle)
    rig.appender.note_read(rig.log.identity())
    rig.log.server.is_down = True
    # When the other reader gets no answer
    rig.appender.note_read(None)
    await until(lambda: not rig.appender.status(time.monotonic()).answers)
    rig.log.server.is_down = False
    await until(lambda: rig.appender.status(time.monotonic()).answers)


async def test_an_idle_log_that_came_back_is_fenced_before_the_next_request(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an idle log that restarts between two checks
    monkeypatch.setattr(appender_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(appender_module, "PING_SECONDS", 0.02)
    rig = await rigs()
    await rig.append()
    rig.log.server.restart()
    # Then what it has lost can be known, although no event arrives
    await until(lambda: rig.log.server.fenced_incarnation == rig.log.server.incarnation)
    assert rig.appender.status(time.monotonic()).answers


async def test_a_client_that_left_does_not_disturb_the_others(rigs: Rigs) -> None:
    rig = await rigs()
    rig.log.gate.clear()
    gone, stays = rig.append(), rig.append()
    gone.cancel()
    rig.log.gate.set()
    await stays
    await until(lambda: rig.appender.waiting_events == 0)
    await rig.append()


async def test_thousands_of_requests_leave_nothing_behind(rigs: Rigs) -> None:
    rig = await rigs()
    for _ in range(20):
        await asyncio.gather(*(rig.append() for _ in range(200)))
    assert rig.stored() == 4000
    assert len(rig.appender._pending) == 0
    assert (rig.appender.waiting_events, rig.appender.waiting_bytes) == (0, 0)
