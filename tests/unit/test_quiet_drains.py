"""Drains of an idle system: what a run asks for while no records arrive, and what ends it."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.breaker import SinkBreaker
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryOffsetFence, MemoryServer
from pipeline.drain import drain, drain_in_turn
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import BreakerOpenError, LogUnavailableError, SinkUnavailableError
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.names import PauseReason
from pipeline.ports.control import Pause
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings
from pipeline.sink.memory import MemoryDatabase, MemorySink
from support.records import record
from tasks.forced_shutdown import ForcedShutdownStep
from tasks.known_pauses import KNOWN_SECONDS_MAX, QUIET_POLLS, KnownPauses, QuietWorker

SETTINGS = Settings()  # a run of 10 s, waits of 1 s
RUN, POLL = SETTINGS.drain_run_seconds_max, SETTINGS.drain_poll_seconds


@dataclass
class Quiet:
    """A worker that lets its drains wait for three polls."""

    ends_at: float = float("inf")
    clock: ManualClock | None = None

    def poll_seconds(self) -> float:
        return 3 * POLL

    def is_ending(self) -> bool:
        return self.clock is not None and self.clock.monotonic() >= self.ends_at


class Log(MemoryLog):
    """A wait for records takes its time, unless an append ends it: each is (seconds from the start, records)."""

    def __init__(self, clock: ManualClock) -> None:
        server = MemoryLogServer(2)
        super().__init__(server=server)
        self.writer = MemoryLog(server=server)
        self.writer.prepare()
        self.clock = clock
        self.started = clock.monotonic()
        self.appends: list[tuple[float, int]] = []
        self.waits: list[float] = []
        self.fails_from = float("inf")

    def seconds(self) -> float:
        return self.clock.monotonic() - self.started

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        if self.seconds() >= self.fails_from:
            raise LogUnavailableError("no answer")
        if self.server.partitions[partition].end <= offset:
            self._pass(wait_seconds)
        return super().read(partition, offset, records_max=records_max, wait_seconds=0)

    def ready(self, offsets: Any, *, wait_seconds: float) -> set[int]:
        self._pass(wait_seconds)
        return super().ready(offsets, wait_seconds=0)

    def _pass(self, wait_seconds: float) -> None:
        if not wait_seconds:  # as far as it reads ahead
            return
        self.waits.append(wait_seconds)
        if self.appends and self.appends[0][0] <= self.seconds() + wait_seconds:
            at, count = self.appends.pop(0)
            self.clock.advance(max(0.0, at - self.seconds()))
            self.writer.append([(0, record(number)) for number in range(count)])
        else:
            self.clock.advance(wait_seconds)


class Rig:
    """One partition or two, and a log without records."""

    def __init__(self, **changes: Any) -> None:
        self.settings = replace(SETTINGS, **changes)
        self.clock = ManualClock()
        self.log = Log(self.clock)
        server = MemoryServer(self.clock)
        self.control = MemoryControlStore(self.settings, server)
        self.control.restore([], actor="test")
        self.database = MemoryDatabase()
        self.breaker = SinkBreaker(self.settings, self.control, self.clock, "test")
        self.adapters: dict[str, Any] = {
            "log": self.log,
            "sink": MemorySink(self.settings, self.database),
            "fence": MemoryOffsetFence(self.settings, server),
            "breaker": self.breaker,
            "settings": self.settings,
            "clock": self.clock,
        }

    def run(self, quiet: Any) -> DrainReport:
        return drain(0, paused=lambda: False, quiet=quiet, **self.adapters)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_idle_run_lasts_twice_as_long_and_asks_a_third_as_often(rig: Rig) -> None:
    assert rig.run(Quiet()).outcome is DrainOutcome.FINISHED
    assert rig.log.seconds() == pytest.approx(2 * RUN, abs=0.1)
    assert len(rig.log.waits) <= 2 * RUN / (3 * POLL) + 1
    # Without a worker that allows it, all is as it was
    other = Rig()
    assert other.run(None).outcome is DrainOutcome.FINISHED
    assert other.log.seconds() == pytest.approx(RUN, abs=0.1)
    assert len(other.log.waits) >= RUN / POLL
    # So it is if the run would come near its hard limit
    near = Rig(drain_hard_seconds_max=3 * RUN)
    near.run(Quiet())
    assert near.log.seconds() == pytest.approx(RUN, abs=0.1)


def test_a_wait_of_several_partitions_is_as_long(rig: Rig) -> None:
    drain_in_turn([0, 1], paused=lambda _: False, quiet=Quiet(), **rig.adapters)
    assert rig.log.seconds() == pytest.approx(RUN, abs=0.1)
    assert len(rig.log.waits) <= RUN / (3 * POLL) + 1


def test_the_first_record_ends_the_wait_and_gives_the_run_its_usual_time(rig: Rig) -> None:
    # Given a run that has waited for longer than a usual one lasts
    rig.log.appends = [(1.7 * RUN, 3)]
    seen: list[float] = []
    rig.adapters["on_stored"] = lambda *_: seen.append(rig.log.seconds())
    report = rig.run(Quiet())
    # Then the records are stored at once, and the run goes on for its time: no hint has to come for the next ones
    assert report.stored == 3
    assert seen == [pytest.approx(1.7 * RUN, abs=0.1)]
    assert rig.log.seconds() == pytest.approx(2.7 * RUN, abs=0.1)
    assert rig.log.seconds() < rig.settings.drain_hard_seconds_max - RUN


def test_a_log_that_fails_late_in_an_idle_run_is_tried_for_a_usual_one(rig: Rig) -> None:
    rig.log.fails_from = 1.5 * RUN
    report = rig.run(Quiet())
    assert report.outcome is DrainOutcome.LOG_UNAVAILABLE
    assert 2.4 * RUN < rig.log.seconds() < 2.7 * RUN


def test_a_sink_that_fails_late_opens_the_breaker_before_the_run_would_be_killed(rig: Rig) -> None:
    rig.log.appends = [(1.9 * RUN, 3)]

    class Failing(MemorySink):
        def store(self, *_: Any, **__: Any) -> Any:
            rig.clock.advance(2.0)  # its time-out
            raise SinkUnavailableError("no answer")

        def probe(self) -> None:
            self.store()

    rig.adapters["sink"] = Failing(rig.settings, rig.database)
    report = rig.run(Quiet())
    assert report.outcome in (DrainOutcome.BREAKER_OPEN, DrainOutcome.SINK_UNAVAILABLE)
    assert rig.breaker.is_open
    assert rig.log.seconds() < rig.settings.drain_hard_seconds_max - RUN / 2


def test_a_worker_that_stops_ends_idle_runs_with_their_wait(rig: Rig) -> None:
    quiet = Quiet(ends_at=rig.clock.monotonic() + 4.0, clock=rig.clock)
    # Then the run is finished: it sends its next hint, and another worker goes on
    assert rig.run(quiet).outcome is DrainOutcome.FINISHED
    assert rig.log.seconds() <= 4.0 + 3 * POLL
    # And so are those of several partitions
    quiet.ends_at = rig.clock.monotonic() + 4.0
    started = rig.clock.monotonic()
    reports = drain_in_turn([0, 1], paused=lambda _: False, quiet=quiet, **rig.adapters)
    assert {report.outcome for report in reports} == {DrainOutcome.FINISHED}
    assert rig.clock.monotonic() - started <= 4.0 + 3 * POLL
    assert rig.database.locks == {}


def test_a_run_with_records_does_not_end_when_its_worker_stops(rig: Rig) -> None:
    # Given a worker that stops, and records that wait
    rig.log.writer.append([(0, record(number)) for number in range(5000)])
    quiet = Quiet(ends_at=0.0, clock=rig.clock)
    # Then they are stored first
    assert rig.run(quiet).stored == 5000


def test_a_drain_waits_long_only_while_its_worker_reads_the_pauses_for_it(rig: Rig) -> None:
    known = KnownPauses()
    quiet = QuietWorker(known, rig.breaker, rig.settings, rig.clock)
    # Given no note, or an old one, the drain asks the control store itself, as often as ever
    assert quiet.poll_seconds() == POLL
    known.note([], rig.clock.monotonic())
    assert quiet.poll_seconds() == QUIET_POLLS * POLL
    rig.clock.advance(KNOWN_SECONDS_MAX + 0.1)
    assert quiet.poll_seconds() == POLL
    # And so it does while its breaker is open, and with a log whose silent brokers hold up a run
    known.note([], rig.clock.monotonic())
    kafka = replace(rig.settings, event_log_url="kafka://127.0.0.1:1/events")
    assert QuietWorker(known, rig.breaker, kafka, rig.clock).poll_seconds() == POLL
    while not rig.breaker.is_open:
        with pytest.raises((SinkUnavailableError, BreakerOpenError)):
            rig.breaker.call(_fail)
    assert quiet.poll_seconds() == POLL


def _fail() -> None:
    raise SinkUnavailableError("no answer")


def test_a_drain_without_records_gives_its_process_to_one_that_waits(rig: Rig) -> None:
    # Given a worker with fewer processes than drains, of which one has no records
    known = KnownPauses()
    known.note([], rig.clock.monotonic())
    quiet = QuietWorker(known, rig.breaker, rig.settings, rig.clock)
    known.note_short(is_short=True)
    # Then its run ends with the first wait for records, however long it could last
    began = rig.clock.monotonic()
    assert rig.run(quiet).outcome is DrainOutcome.FINISHED
    assert rig.clock.monotonic() - began <= QUIET_POLLS * POLL
    # And it lasts when no drain waits any more
    known.note_short(is_short=False)
    assert not quiet.is_ending()


def test_the_start_of_a_shutdown_is_noted_for_the_drains() -> None:
    known = KnownPauses()
    settings = Settings()
    app = SimpleNamespace(
        amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=["batches"])), sluice_settings=settings,
        sluice_known_pauses=known,
    )  # fmt: skip
    worker: Any = SimpleNamespace(app=app)
    step: Any = ForcedShutdownStep(worker)
    quiet = QuietWorker(known, Rig().breaker, settings, ManualClock())
    assert not quiet.is_ending()
    step.close(worker)
    step._timer.cancel()
    assert quiet.is_ending()
    # And a later note of the pauses leaves it
    known.note([], 100.0)
    assert quiet.is_ending()
    assert known.are([], 100.0)
    # And so does a note that no drain waits for a process, which a stop does not say
    assert not known.is_short
    known.note_short(is_short=False)
    assert quiet.is_ending()


def test_a_note_of_one_pause_is_none_of_another_that_is_like_it() -> None:
    known, pause = KnownPauses(), Pause(PauseReason.POISON, 7, 0.0, "a drain", "w", partition=1)
    known.note([pause], 100.0)
    assert known.are([pause], 100.0)
    # Whether it is of another partition, or began after that one ended
    for other in (
        replace(pause, partition=2),
        replace(pause, generation=8),
        replace(pause, reason=PauseReason.LOG_GAP),
    ):
        assert not known.are([other], 100.0)
    assert not known.are([pause, replace(pause, partition=2, generation=8)], 100.0)
