"""One tick of the control loop, with everything in memory and a clock that is moved by hand."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from ingest import health
from ingest.appender import LogStatus
from ingest.dashboard import view
from ingest.health import HealthSources, health_inputs
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryServer
from pipeline.errors import (
    LogUnavailableError,
    SinkMisconfiguredError,
    SinkStandbyError,
    SinkUnavailableError,
    StoreUnavailableError,
)
from pipeline.flow.age import Age
from pipeline.flow.shares import Offered, Shares
from pipeline.follower import ControlSnapshot
from pipeline.late_begin import LateBegin, LateBegins, accepted_data, late_begin_data, shown_late_begins
from pipeline.log.memory import MemoryLog
from pipeline.names import AlarmCode, ControlEventKind, Mode, PauseReason, ProblemCode, Severity
from pipeline.policies import make_policy
from pipeline.policies.bands import BandPolicy
from pipeline.ports.control import Bands, OperatorLimit, OperatorPause, Override, PublishedRate, Trouble
from pipeline.ports.log import MissingReplicas, PartitionPosition, SetUpFault
from pipeline.ports.offset_store import StoredOffsets
from pipeline.ports.operator_store import OperatorState
from pipeline.ports.rate import BatchStart, PartitionSample, PolicyState, RateDecision, RateSample
from pipeline.regulate import regulate
from pipeline.regulate.context import ControlAdapters, PolicyOf, SinkQueries
from pipeline.regulate.report import RegulateReport
from pipeline.status import StatusContext, read_status, status_document
from support.control import ControlRig, control_settings, memory_rig

BREAKER, OPERATOR = PauseReason.BREAKER, PauseReason.OPERATOR


@dataclass
class FakeDatabase:
    """What PostgreSQL would answer, and what it was asked."""

    clock: ManualClock
    clock_ahead: float = 0.0  # seconds
    before_answer: Callable[[], None] = lambda: None
    stored: dict[int, int] = field(default_factory=dict)
    batches: dict[int, BatchStart] = field(default_factory=dict)
    pauses: list[OperatorPause] = field(default_factory=list)
    override: Override | None = None
    bands: Bands | None = None
    accounts: list[OperatorLimit] = field(default_factory=list)
    held: set[int] = field(default_factory=set)  # partitions whose lock a backend holds
    is_unavailable: bool = False
    refusal: Exception | None = None  # why it can't be used
    asked: list[str] = field(default_factory=list)

    def stored_offsets(self, log_id: str) -> StoredOffsets:
        self._answer("offsets")
        self.before_answer()
        return StoredOffsets(dict(self.stored), self.clock.now() + self.clock_ahead, dict(self.batches))

    def settled_offsets(self, log_id: str) -> dict[int, int]:
        self._answer("settled")
        return dict(self.stored)

    def load_operator_state(self) -> OperatorState:
        self._answer("pauses")
        return OperatorState(self.pauses, self.override, self.bands, self.accounts)

    def terminate(self, log_id: str, partition: int) -> bool:
        self._answer(f"terminate {partition}")
        return partition in self.held

    def why_standing(self, log_id: str, partition: int) -> str:
        self._answer(f"why {partition}")
        return "ann has locked it"

    def _answer(self, question: str) -> None:
        self.asked.append(question)
        if self.is_unavailable:
            raise SinkUnavailableError("PostgreSQL is away")
        if self.refusal is not None:
            raise self.refusal


class _OwnClock:
    """The clock of another machine than the store's: its wall clock may be off."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.ahead = 0.0  # seconds

    def now(self) -> float:
        return self._clock.now() + self.ahead

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


class System:
    """A control loop and what it looks at."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.own_clock = _OwnClock(self.clock)  # of the process that ticks
        self.server = MemoryServer(self.clock)
        self.rig: ControlRig = memory_rig(control_settings("redis://nowhere"), self.server)
        self.log = MemoryLog(partitions=2)
        self.database = FakeDatabase(self.clock)
        self.lag_age, self.rate_age, self.late_begins = Age(), Age(), LateBegins()
        self.session_problem: str | None = None
        self.server_problem: str | None = None
        self.seen: list[tuple[str, dict[int, int]]] = []  # of the log, at each tick
        self.policy_of: PolicyOf | None = None  # None: that of the settings

    def tick(self, *, after: float = 5.0, actor: str = "controller") -> RegulateReport:
        """Let time pass and tick."""
        self.clock.advance(after)
        settings = self.rig.settings
        return regulate(
            settings=settings,
            policy_of=self.policy_of or partial(make_policy, settings),
            log=self.log,
            sink=SinkQueries(
                self.database.stored_offsets,
                self.database.settled_offsets,
                self.database.load_operator_state,
                self.database.terminate,
                self.database.why_standing,
                session_problem=self.session_problem,
                server_problem=self.server_problem,
                see_log=lambda log_id, ends: self.seen.append((log_id, dict(ends))),
            ),
            control=ControlAdapters(
                self.rig.store,
                self.rig.events,
                self.rig.leases,
                self.rig.progress,
                self.rig.fence,
                self.rig.troubles,
                clock=self.own_clock,
                lag_age=self.lag_age,
                rate_age=self.rate_age,
                late_begins=self.late_begins,
                offers=self.rig.offers,
            ),
            actor=actor,
        )

    def rate(self) -> PublishedRate:
        """What is published."""
        rate = self.rig.store.state().rate
        assert rate is not None
        return rate

    def append(self, partition: int, events: int) -> None:
        """Let the log grow."""
        self.log.append([(partition, b"{}")] * events)

    def events(self, kind: ControlEventKind) -> int:
        """How often something happened."""
        return sum(event.kind is kind for event in self.rig.events.last(1000))


@pytest.fixture
def system() -> System:
    return System()


# --- One partition that can't be asked ---------------------------------------------------------------


def test_the_lag_of_a_partition_without_a_leader_is_held_and_the_others_count(system: System) -> None:
    # Given a lag that was known, of which a good part is in a partition that loses its leader
    system.append(0, 20_000)
    system.append(1, 20_000)
    system.database.stored = {0: 0, 1: 10_000}
    system.tick()
    assert system.rate().lag == 30_000
    system.log.server.lose_leader(1)
    # When the other one is emptied meanwhile
    system.database.stored = {0: 20_000, 1: 10_000}
    for _ in range(3):
        report = system.tick()
        # Then the rate goes by both, and is not at its most; the one is named
        assert report.lag == {0: 0}
        assert (system.rate().lag, system.rate().mode) == (10_000, Mode.DEGRADED)
        assert system.rate().lag_known_at == system.clock.now()
        consumption = system.rate().consumption
        assert consumption is not None
        assert (consumption.lag_by_partition, consumption.lag_held) == ({0: 0}, {1: 10_000})
        assert [(a.code, a.severity, a.partition) for a in system.rate().alarms] == [
            (AlarmCode.PARTITION_UNAVAILABLE, Severity.CRITICAL, 1)
        ]
        # And what is drained is told by what is stored
        assert consumption.drain_rate is not None
    # When it is back
    system.log.server.lose_leader()
    system.database.stored = {0: 20_000, 1: 20_000}
    system.tick()
    assert (system.rate().lag, system.rate().mode, system.rate().alarms) == (0, Mode.NORMAL, ())


def test_many_partitions_that_do_not_answer_are_one_alarm(system: System) -> None:
    # Given a topic whose partitions have no leaders yet, or a broker that leads most of them and is dead
    system.log = MemoryLog(partitions=256)
    system.log.server.lose_leader(*range(10, 256))
    # Then one sentence says so
    problems = system.tick().problems
    assert [problem for problem in problems if "can't be asked" in problem] == [
        "246 of the 256 partitions of the event log can't be asked (10, 11, 12, …): events for them are refused, and "
        "none are stored"
    ]
    [alarm] = [alarm for alarm in system.rate().alarms if alarm.code == AlarmCode.PARTITION_UNAVAILABLE]
    assert (alarm.severity, alarm.partition) == (Severity.CRITICAL, None)
    assert "just made" in alarm.look_at


def test_a_partition_that_was_never_known_does_not_make_the_lag_unknown(system: System) -> None:
    # Given a system whose control state was lost while a partition has no leader
    system.append(0, 20_000)
    system.log.server.lose_leader(1)
    system.tick()
    # Then the other's lag stands for both
    assert (system.rate().lag, system.rate().mode) == (40_000, Mode.DEGRADED)


def test_a_log_that_is_set_up_wrongly_is_named_and_measured(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = (
        SetUpFault("The topic deletes events", "alter it", loses_events=True),
        SetUpFault("The topic has 2 partitions", "add some", loses_events=False),
    )
    identity = replace(system.log.identity(), faults=faults)
    monkeypatch.setattr(system.log, "identity", lambda: identity)
    system.tick()
    assert (system.rate().lag, system.rate().mode) == (0, Mode.NORMAL)
    assert [(a.code, a.severity, a.what, a.look_at) for a in system.rate().alarms] == [
        (AlarmCode.LOG_SET_UP, Severity.CRITICAL, "The topic deletes events", "alter it"),
        (AlarmCode.LOG_SET_UP, Severity.DEGRADED, "The topic has 2 partitions", "add some"),
    ]


@pytest.mark.parametrize(("refuses_events", "severity"), [(True, Severity.CRITICAL), (False, Severity.DEGRADED)])
def test_missing_replicas_of_the_log_are_an_alarm(
    system: System, monkeypatch: pytest.MonkeyPatch, refuses_events: bool, severity: Severity
) -> None:
    missing = MissingReplicas("A replica is missing", "the brokers", refuses_events)
    identity = replace(system.log.identity(), missing_replicas=missing)
    monkeypatch.setattr(system.log, "identity", lambda: identity)
    system.tick()
    assert [(a.code, a.severity, a.what, a.look_at) for a in system.rate().alarms] == [
        (AlarmCode.REPLICAS_MISSING, severity, "A replica is missing", "the brokers")
    ]


def _no_positions(_: object = None) -> list[PartitionPosition]:
    raise LogUnavailableError("the event log is away")


def test_a_tail_that_the_log_lost_is_an_alarm_and_is_recorded_once(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that came back without accepted events of two partitions
    identity = replace(system.log.identity(), began_by="a replica took the place of its master")
    positions = [PartitionPosition(0, 0, 50, 50, 50, 1200), PartitionPosition(1, 0, 20, 20, 20, 3)]
    monkeypatch.setattr(system.log, "identity", lambda: identity)
    monkeypatch.setattr(system.log, "positions", lambda _=None: positions)
    for _ in range(3):
        system.tick()
        # Then health is critical, and says how many they are at most, and of which partitions
        (alarm,) = system.rate().alarms
        assert (alarm.code, alarm.severity) == (AlarmCode.LOG_TAIL_LOST, Severity.CRITICAL)
        assert "without up to 1,203 accepted events" in alarm.what
        assert "(partition 0: 1,200, partition 1: 3): a replica took the place of its master" in alarm.what
    # And it stays in the control events, once, also if a tick between two others can't read the log
    monkeypatch.setattr(system.log, "positions", _no_positions)
    system.tick()
    assert AlarmCode.LOG_TAIL_LOST not in {alarm.code for alarm in system.rate().alarms}
    # nor when the control store's clock is set forward
    system.clock.advance(7200.0)
    monkeypatch.setattr(system.log, "positions", lambda _=None: positions)
    system.tick()
    assert AlarmCode.LOG_TAIL_LOST in {alarm.code for alarm in system.rate().alarms}
    lost = [event for event in system.rig.events.last(100) if event.kind is ControlEventKind.LOG_TAIL_LOST]
    assert [event.data for event in lost] == [{"events": "1203", "incarnation": identity.incarnation}]


@pytest.mark.parametrize("is_read_between", [False, True])
def test_a_second_loss_with_the_same_words_is_recorded_too(
    system: System, monkeypatch: pytest.MonkeyPatch, is_read_between: bool
) -> None:
    # Given a log that lost an event at a restart
    identity = replace(system.log.identity(), began_by="its Redis was restarted")
    monkeypatch.setattr(system.log, "identity", lambda: identity)
    monkeypatch.setattr(system.log, "positions", lambda _=None: [PartitionPosition(0, 0, 50, 50, 50, 1)])
    system.tick()
    first = identity.incarnation
    # When it loses another one at the next restart, half an hour later, whether a tick fails in between or not
    if not is_read_between:
        with monkeypatch.context() as patched:
            patched.setattr(system.log, "positions", _no_positions)
            system.tick()
    system.clock.advance(1800.0)
    identity = replace(identity, incarnation="the next")
    for _ in range(3):
        system.tick()
    # Then there is a control event for each
    lost = [event for event in system.rig.events.last(100) if event.kind is ControlEventKind.LOG_TAIL_LOST]
    assert sorted(event.data["incarnation"] for event in lost) == sorted([system.log.identity().incarnation, first])
    assert len({event.why for event in lost}) == 1


def test_where_the_newest_batches_began_reaches_the_policy(system: System) -> None:
    samples: list[RateSample] = []

    class Watching(BandPolicy):
        def decide(self, sample: RateSample, state: PolicyState | None = None) -> RateDecision:
            samples.append(sample)
            return super().decide(sample, state)

    system.append(0, 50)
    system.append(1, 20)
    system.database.stored, system.database.batches = {0: 20}, {0: BatchStart(10, 1e9)}
    system.policy_of = lambda _: Watching.make(system.rig.settings, None)
    system.tick()
    assert samples[0].partitions == {0: PartitionSample(50, 30, BatchStart(10, 1e9)), 1: PartitionSample(20, 20)}
    assert samples[0].log_id == system.log.identity().log_id


# --- Lag to rate ----------------------------------------------------------------------------------


def test_a_fresh_system_is_at_its_full_rate_and_knows_its_reasons_after_the_first_tick(system: System) -> None:
    report = system.tick()
    assert report.ran
    assert report.restored
    assert report.problems == ()
    assert report.lag == {0: 0, 1: 0}
    rate = system.rate()
    assert report.published == rate
    assert (rate.rate, rate.mode, rate.lag, rate.lag_known_at) == (1000.0, Mode.NORMAL, 0, system.clock.now())
    assert system.rig.store.state().pauses == ()


def test_the_rate_follows_the_lag_of_all_partitions_down_and_up(system: System) -> None:
    system.append(0, 20_000)
    system.append(1, 20_000)
    system.database.stored = {0: 5_000, 1: 5_000}
    system.tick()
    assert (system.rate().rate, system.rate().mode, system.rate().lag) == (550.0, Mode.DEGRADED, 30_000)
    system.append(0, 30_000)
    system.tick()
    assert (system.rate().rate, system.rate().mode, system.rate().lag) == (100.0, Mode.CRITICAL, 60_000)
    system.database.stored = {0: 50_000, 1: 20_000}
    system.tick()
    assert (system.rate().rate, system.rate().mode, system.rate().lag) == (1000.0, Mode.NORMAL, 0)


def test_a_second_beat_is_harmless(system: System) -> None:
    assert system.tick().ran
    first = system.rate()
    assert system.tick(after=2.5, actor="controller-2") == RegulateReport(ran=False)
    assert system.rate() == first
    assert system.tick(after=2.5).ran  # and does not shut out the first one's next tick
    assert not system.tick(after=2.5, actor="controller-2").ran


def slow_log(system: System, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Let the log take 3 s to tell its positions; `meanwhile` runs in each of these seconds."""
    positions = system.log.positions

    def slowly() -> list[PartitionPosition]:
        monkeypatch.setattr(system.log, "positions", positions)
        for _ in range(3):
            system.clock.advance(1.0)
            meanwhile()
        return positions()

    monkeypatch.setattr(system.log, "positions", slowly)


def test_a_tick_that_takes_longer_than_the_period_does_not_make_the_next_ones_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a tick a second, and a log that takes three seconds to answer
    system = System()
    system.rig = memory_rig(control_settings("redis://nowhere", regulate_seconds=1.0), system.server)
    reports: list[RegulateReport] = []
    slow_log(system, monkeypatch, lambda: reports.append(system.tick(after=0.0, actor="controller-2")))
    # Then each tick that comes meanwhile returns at once
    assert system.tick(after=1.0).ran
    assert reports == [RegulateReport(ran=False)] * 3
    # And the next one after the slow tick runs
    assert system.tick(after=1.0).ran


def test_a_tick_takes_its_leases_in_one_call_and_notes_no_progress_of_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(adapter: Any, name: str) -> None:
        call = getattr(adapter, name)

        def ask(*args: Any, **options: Any) -> Any:
            asked.append(name)
            return call(*args, **options)

        monkeypatch.setattr(adapter, name, ask)

    for name in ("take", "take_in_order", "give_back"):
        counted(system.rig.leases, name)
    counted(system.rig.progress, "note")

    def calls() -> list[str]:
        asked.clear()
        assert system.tick().ran
        return list(asked)

    # Given an idle system: the first tick knows no other, and no pauses
    idle = ["take_in_order", "give_back"]
    assert [calls(), calls()] == [["take_in_order", "note", "give_back"]] * 2
    assert [calls(), calls()] == [idle, idle]
    # When a partition has events, its progress is noted, and forgotten at the next tick without any
    system.append(0, 10)
    assert [calls(), calls()] == [["take_in_order", "note", "give_back"]] * 2
    system.database.stored[0] = 10
    assert [calls(), calls()] == [["take_in_order", "note", "give_back"], idle]
    # Then the next events count from their own time
    system.append(0, 10)
    assert calls() == ["take_in_order", "note", "give_back"]
    assert _no_progress(system) == {0: 0.0}


@pytest.mark.parametrize(("regulate_seconds", "measure_seconds"), [(5.0, 15.0), (1.0, 15.0), (30.0, 15.0)])
def test_what_postgresql_holds_is_measured_by_one_tick_in_each_period(
    regulate_seconds: float, measure_seconds: float
) -> None:
    # Given ticks by two processes in turn, each a little early or late
    system = System()
    settings = control_settings("redis://nowhere", regulate_seconds=regulate_seconds, measure_seconds=measure_seconds)
    system.rig = memory_rig(settings, system.server)
    due: list[float] = []
    for number in range(int(120 / regulate_seconds)):
        early = 0.1 * regulate_seconds * (-1) ** number
        report = system.tick(after=regulate_seconds + early, actor=f"controller-{number % 2}")
        assert report.ran
        if report.is_measure_due:
            due.append(system.clock.monotonic())
    # Then one of them is due in each period, or each one if they are rarer
    period = max(regulate_seconds, measure_seconds)
    assert len(due) == 120 / period
    assert max(later - earlier for earlier, later in itertools.pairwise(due)) <= period + regulate_seconds / 2


def test_a_tick_that_failed_or_was_killed_does_not_hold_up_the_next_ones_for_long(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a tick that ends with an error
    def fail() -> None:
        raise RuntimeError("a mistake")

    slow_log(system, monkeypatch, fail)
    with pytest.raises(RuntimeError):
        system.tick()
    assert system.tick().ran
    # And one whose process is killed: it gives nothing back
    with monkeypatch.context() as killed:
        killed.setattr(system.rig.leases, "give_back", lambda *_: None)
        assert system.tick().ran
    assert not system.tick(after=5.0).ran
    assert system.tick(after=5.0).ran


def test_a_tick_whose_lease_can_not_be_given_back_has_run(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: str) -> None:
        raise StoreUnavailableError

    monkeypatch.setattr(system.rig.leases, "give_back", unavailable)
    assert system.tick().ran


def test_the_log_is_seen_also_while_postgresql_is_away(system: System) -> None:
    # Given a database that does not answer
    system.database.is_unavailable = True
    system.append(0, 10)
    # Then what the log holds meanwhile is remembered: it could be emptied before the database is back
    system.tick()
    log_id, ends = system.seen[-1]
    assert (log_id, ends[0]) == (system.log.identity().log_id, 10)


def test_a_store_that_is_away_ends_the_tick(system: System) -> None:
    system.server.is_unavailable = True
    with pytest.raises(StoreUnavailableError):
        system.tick()


# --- Unknown lag ----------------------------------------------------------------------------------


def test_an_unknown_lag_holds_the_rate_for_six_periods_and_then_halves_it_in_each(system: System) -> None:
    # Given a known lag
    system.append(0, 20_000)
    system.tick()
    known_at = system.clock.now()
    assert system.rate().rate == 775.0
    # When the log does not answer any more
    system.log.stop()
    rates = [round(system.tick().published.rate, 3) for _ in range(10)]  # type: ignore[union-attr]
    # Then
    assert rates == [775.0] * 6 + [387.5, 193.75, 100.0, 100.0]
    rate = system.rate()
    assert (rate.mode, rate.lag, rate.lag_known_at) == (Mode.UNKNOWN, None, known_at)
    assert system.tick().problems[0].startswith("The lag is unknown: ")
    assert [alarm.code for alarm in system.rate().alarms] == [AlarmCode.LAG_UNKNOWN]
    # And when it answers again, the policy decides again
    system.log.start()
    assert system.tick().published.rate == 775.0  # type: ignore[union-attr]


def test_a_lag_that_was_never_known_is_not_zero(system: System) -> None:
    system.log.stop()
    report = system.tick()
    rate = system.rate()
    assert (rate.rate, rate.mode, rate.lag, rate.lag_known_at) == (100.0, Mode.UNKNOWN, None, None)
    assert report.lag is None
    assert system.tick().published.rate == 100.0  # type: ignore[union-attr]


def test_without_commits_and_without_postgresql_the_lag_is_unknown(system: System) -> None:
    system.tick()
    system.append(1, 1)
    system.database.is_unavailable = True
    report = system.tick()
    assert report.lag is None
    assert len(report.problems) == 2
    assert system.rate().mode is Mode.UNKNOWN


def test_the_logs_own_commits_are_enough(system: System) -> None:
    system.tick()
    system.append(0, 20_000)
    system.log.commit(system.log.identity().log_id, 0, 5_000)
    system.log.commit(system.log.identity().log_id, 1, 0)
    system.database.is_unavailable = True
    assert system.tick().lag == {0: 15_000, 1: 0}
    assert system.rate().mode is Mode.DEGRADED


def test_a_commit_of_a_database_that_was_emptied_is_corrected(system: System) -> None:
    # Given a log that was told that all of it is stored, by a database that knows of nothing now
    system.append(0, 20_000)
    system.append(1, 10)
    log_id = system.log.identity().log_id
    system.log.commit(log_id, 0, 20_000)
    system.log.commit(log_id, 1, 4)
    system.database.stored = {1: 4}
    # Then all of it is lag, and whoever asks the log alone learns that too
    assert system.tick().lag == {0: 20_000, 1: 6}
    assert [position.committed for position in system.log.positions()] == [0, 4]
    system.database.is_unavailable = True
    assert system.tick().lag == {0: 20_000, 1: 6}


def test_a_log_that_ends_before_the_stored_offset_is_stopped(system: System) -> None:
    # Given a log in use that was put back, with nobody who has noticed
    system.append(0, 100)
    system.append(1, 7)
    system.database.stored = {0: 150, 1: 7}
    # When the control loop compares the two
    system.tick()
    # Then that partition stops, before what comes in is passed over and trimmed; and it is said
    state = system.rig.store.state()
    assert state.pauses is not None
    assert [(pause.reason, pause.partition) for pause in state.pauses] == [(PauseReason.LOG_GAP, 0)]
    assert [(a.code, a.partition) for a in system.rate().alarms] == [(AlarmCode.LOG_BEHIND_STORED, 0)]
    assert "150" in state.pauses[0].why
    assert "100" in state.pauses[0].why
    # And it is not lifted by itself: events may have come in below the stored offset meanwhile
    system.append(0, 100)
    assert system.tick().problems == ()
    assert len(system.rig.store.state().pauses or ()) == 1


def test_a_single_lost_record_is_said_in_the_singular(system: System) -> None:
    system.append(0, 6)
    system.log.server.trim(0, 6)
    system.database.stored = {0: 6}
    system.log.commit(system.log.identity().log_id, 0, 6)
    system.tick()
    system.database.stored = {0: 5}
    system.tick()
    (pause,) = system.rig.store.state().pauses or ()
    assert "the log begins at 6: 1 record is in neither. PostgreSQL has lost it after it was trimmed" in pause.why


def test_what_postgresql_lost_after_it_was_trimmed_is_declared_and_counted(system: System) -> None:
    # Given an idle partition of which all was stored and trimmed, and another of which the log holds the rest
    system.append(0, 100)
    system.append(1, 10)
    system.log.server.trim(0, 100)
    system.log.server.trim(1, 5)
    system.database.stored = {0: 100, 1: 5}
    system.log.commit(system.log.identity().log_id, 0, 100)
    assert system.tick().problems == ()
    # When PostgreSQL comes back with less: a standby was promoted
    system.database.stored = {0: 60, 1: 5}
    system.tick()
    # Then the partition stops, although nothing waits in it, and it is said how many records are lost
    (pause,) = system.rig.store.state().pauses or ()
    assert (pause.reason, pause.partition) == (PauseReason.LOG_GAP, 0)
    assert "stored up to offset 60 only, and the log begins at 100: 40 records are in neither" in pause.why
    assert "PostgreSQL has lost them after they were trimmed" in pause.why
    # And that is not repeated
    system.tick()
    assert system.events(ControlEventKind.PAUSED) == 1


def test_a_database_without_what_was_stored_before_is_named_before_the_next_event(system: System) -> None:
    # Given a log of which all was stored and trimmed, and a database that has stored nothing of it
    for partition, events in ((0, 100), (1, 20)):
        system.append(partition, events)
        system.log.server.trim(partition, events)
        system.log.commit(system.log.identity().log_id, partition, events)
    system.database.stored = {}
    # Then health names the likely cause from the first tick on, and records nothing: no drain has begun late yet
    for _ in range(2):
        system.tick()
        (alarm,) = system.rate().alarms
        assert (alarm.code, alarm.severity) == (AlarmCode.BEGAN_LATE, Severity.DEGRADED)
        assert "does not have the 120 records of this event log that drains stored before" in alarm.what
        assert "DATABASE_URL probably names another database than then" in alarm.what
        assert alarm.look_at.startswith("DATABASE_URL: if it is wrong, set it back")
    assert system.events(ControlEventKind.BEGAN_LATE) == 0
    # When it is the right database again
    right = {0: 100, 1: 20}
    system.database.stored = right
    # Then that is over at once
    system.tick()
    assert system.rate().alarms == ()


def test_a_late_begin_that_a_drain_has_recorded_is_shown_for_an_hour(system: System) -> None:
    # Given events that were stored in another database, before a tick has seen that
    system.tick()
    settings, log_id = system.rig.settings, system.log.identity().log_id
    for partition in (0, 1):
        data = late_begin_data(settings, partition, LateBegin(log_id, 50, 50))
        system.rig.events.record(ControlEventKind.BEGAN_LATE, actor="a drain", why="late", data=data)
        system.append(partition, 51)
    system.database.stored = {0: 51, 1: 51}
    # Then each process that ticks says so, the next one too
    for late_begins in (system.late_begins, LateBegins()):
        system.late_begins = late_begins
        system.tick()
        (alarm,) = system.rate().alarms
        assert "does not have the 100 records" in alarm.what
    # And no more after an hour
    system.tick(after=3600)
    assert system.rate().alarms == ()
    # Nor with another database than the one that began late
    system.late_begins = LateBegins()
    system.rig.events.record(
        ControlEventKind.BEGAN_LATE, actor="a drain", why="late", data=data | {"place": "elsewhere"}
    )
    system.tick()
    assert system.rate().alarms == ()


def test_records_that_the_log_lost_before_anything_was_stored_are_named_before_the_next_event(system: System) -> None:
    # Given a partition that somebody empties before anything of it is stored
    system.append(0, 30)
    system.tick()
    assert system.rate().alarms == ()
    system.log.server.trim(0, 30)
    # Then health says so at the next tick, for an hour, also after another process has ticked; and it is recorded once
    for late_begins in (system.late_begins, LateBegins(), system.late_begins):
        system.late_begins = late_begins
        system.tick()
        (alarm,) = system.rate().alarms
        assert (alarm.code, alarm.severity) == (AlarmCode.BEGAN_LATE, Severity.DEGRADED)
        assert alarm.what.startswith("Neither the event log nor PostgreSQL")
        assert "has the first 30 records" in alarm.what
        assert alarm.look_at.startswith("who deletes from the event log")
    assert system.events(ControlEventKind.BEGAN_LATE) == 1
    system.tick(after=3600)
    system.tick()
    assert system.rate().alarms == ()
    assert system.events(ControlEventKind.BEGAN_LATE) == 1


def test_an_accepted_late_begin_is_no_reason_any_more_and_a_later_other_one_is(system: System) -> None:
    # Given a database that has nothing of one partition, and has begun late with the other
    log_id, settings = system.log.identity().log_id, system.rig.settings
    for partition, events in ((0, 100), (1, 20)):
        system.append(partition, events)
        system.log.server.trim(partition, events)
        system.log.commit(log_id, partition, events)
    system.database.stored = {}
    system.tick()
    data = late_begin_data(settings, 1, LateBegin(log_id, 20, 20))
    system.rig.events.record(ControlEventKind.BEGAN_LATE, actor="a drain", why="late", data=data)
    system.append(1, 1)
    system.database.stored = {1: 21}
    system.tick()
    assert "the 120 records" in system.rate().alarms[0].what
    # When an operator accepts what is shown
    positions, stored = system.log.positions(), system.database.stored
    told, now = system.rig.events.last(99), system.clock.now()
    shown = shown_late_begins(settings, log_id, positions, stored, events=told, now=now)
    assert shown == {0: LateBegin(log_id, 100, 100), 1: LateBegin(log_id, 20, 20)}
    accepted = accepted_data(settings, log_id, shown)
    system.rig.events.record(ControlEventKind.LATE_BEGIN_ACCEPTED, actor="ann@host", why="a new server", data=accepted)
    # Then it is no reason for any process that ticks, nor once a drain has recorded it with the next event
    late_begins = system.late_begins
    for one in (late_begins, LateBegins(), late_begins):
        system.late_begins = one
        system.tick()
        assert system.rate().alarms == ()
    data = late_begin_data(settings, 0, LateBegin(log_id, 100, 100))
    system.rig.events.record(ControlEventKind.BEGAN_LATE, actor="a drain", why="late", data=data)
    system.append(0, 5)
    system.log.commit(log_id, 0, 105)
    system.database.stored = {0: 105, 1: 21}
    system.tick()
    assert system.rate().alarms == ()
    # When that database is replaced too
    system.log.server.trim(0, 105)
    system.database.stored = {1: 21}
    # Then it is a reason again, for the partition that more was stored of
    system.tick()
    (alarm,) = system.rate().alarms
    assert "does not have the 105 records" in alarm.what


def test_records_that_were_stored_elsewhere_and_are_stored_again_stay_a_reason(system: System) -> None:
    # Given a log that keeps what was stored, and a database that has nothing of it
    for partition, events in ((0, 100), (1, 20)):
        system.append(partition, events)
        system.log.commit(system.log.identity().log_id, partition, events)
    system.database.stored = {}
    # Then the first tick says so and records it, and corrects the commits, by which the log shows what is to be stored
    system.tick()
    assert [position.committed for position in system.log.positions()] == [0, 0]
    # And it stays a reason while nothing is stored there, and for an hour, whatever process ticks
    for late_begins, stored in ((system.late_begins, {}), (LateBegins(), {}), (LateBegins(), {0: 100, 1: 20})):
        system.late_begins, system.database.stored = late_begins, stored
        system.tick()
        (alarm,) = system.rate().alarms
        assert (alarm.code, alarm.severity) == (AlarmCode.BEGAN_LATE, Severity.DEGRADED)
        assert "did not have the 120 records of this event log that drains stored before" in alarm.what
        assert "the log still holds 120 of them, and they are stored again here" in alarm.what
        assert "accept_late_begin" in alarm.look_at
    assert system.events(ControlEventKind.BEGAN_LATE) == 2
    system.tick(after=3600)
    assert system.rate().alarms == ()


def test_commits_that_show_what_was_stored_elsewhere_are_kept_until_that_is_recorded(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that keeps what was stored, and a database that has nothing of it
    system.append(0, 100)
    system.log.commit(system.log.identity().log_id, 0, 100)
    system.database.stored = {}

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("no answer")

    # When the control store is lost just when the first tick records that, and the process is another one afterwards
    with monkeypatch.context() as patch:
        patch.setattr(system.rig.events, "record", away)
        with pytest.raises(StoreUnavailableError):
            system.tick()
    system.late_begins = LateBegins()
    # Then the next tick still sees it
    system.tick()
    (alarm,) = system.rate().alarms
    assert "did not have the 100 records" in alarm.what


def test_an_accepted_late_begin_does_not_hide_that_the_log_then_loses_what_was_to_be_stored_again(
    system: System,
) -> None:
    # Given a log that keeps what was stored, and an operator who accepts that a new database begins without it
    log_id, settings = system.log.identity().log_id, system.rig.settings
    system.append(0, 100)
    system.log.commit(log_id, 0, 100)
    system.database.stored = {}
    system.tick()
    told, now = system.rig.events.last(99), system.clock.now()
    shown = shown_late_begins(settings, log_id, system.log.positions(), {}, events=told, now=now)
    accepted = accepted_data(settings, log_id, shown)
    system.rig.events.record(ControlEventKind.LATE_BEGIN_ACCEPTED, actor="ann@host", why="a new server", data=accepted)
    system.tick()
    assert system.rate().alarms == ()
    # When half of it expires before it is stored again, as the drain of the partition then records
    system.log.server.trim(0, 50)
    data = late_begin_data(settings, 0, LateBegin(log_id, 50, 0))
    system.rig.events.record(ControlEventKind.BEGAN_LATE, actor="a drain", why="late", data=data)
    system.database.stored = {0: 100}
    # Then that is a reason, whatever process ticks
    for late_begins in (system.late_begins, LateBegins()):
        system.late_begins = late_begins
        system.tick()
        (alarm,) = system.rate().alarms
        assert "has the first 50 records" in alarm.what
    # And it can be accepted too
    told, now = system.rig.events.last(99), system.clock.now()
    shown = shown_late_begins(settings, log_id, system.log.positions(), {0: 100}, events=told, now=now)
    accepted = accepted_data(settings, log_id, shown)
    system.rig.events.record(ControlEventKind.LATE_BEGIN_ACCEPTED, actor="ann@host", why="test data", data=accepted)
    system.tick()
    assert system.rate().alarms == ()


def test_a_commit_beyond_the_end_of_the_log_is_of_another_one(system: System) -> None:
    # Given a topic that was made anew, and the commits of the one before
    system.log.server.partitions[0].committed = 500
    system.tick()
    # Then no database is missing
    assert system.rate().alarms == ()


def test_an_idle_tick_does_not_read_the_control_events(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system whose drains have stored of each partition
    system.append(0, 10)
    system.database.stored = {0: 10, 1: 0}
    system.tick()
    # Then the next ticks do not look for late begins
    monkeypatch.setattr(system.rig.events, "last", lambda _: pytest.fail("the control events are read"))
    for _ in range(3):
        system.tick()


def test_a_log_without_its_tail_that_waits_for_its_first_append_is_well(system: System) -> None:
    # Given a log that came back without its tail
    system.log = MemoryLog(lowest_offsets=lambda *_, **__: {0: 150}, server=system.log.server)
    system.append(0, 150)
    system.database.stored = {0: 150}
    system.log.server.restart(keep={0: 100})
    # Then nothing is wrong: no append happens before the lowest offsets are known
    assert system.tick().problems == ()
    # And nothing is wrong after it
    system.append(1, 1)
    assert system.tick().problems == ()
    system.append(0, 1)
    assert system.tick().lag == {0: 1, 1: 1}
    assert system.rig.store.state().pauses == ()


def test_offsets_that_were_stored_while_postgresql_was_asked_are_no_alarm(system: System) -> None:
    # Given a partition that moves on between the two questions
    system.append(0, 10)

    def stored_offsets(log_id: str) -> StoredOffsets:
        system.append(0, 5)
        return StoredOffsets({0: 15}, system.clock.now())

    system.database.stored_offsets = stored_offsets  # type: ignore[method-assign]
    assert system.tick().problems == ()


def test_the_mirror_is_made_complete_after_a_flush_without_an_append(system: System) -> None:
    # Given a control store that has lost what it knew, and PostgreSQL that answers
    system.append(0, 10)
    system.database.stored = {0: 10}
    system.tick()
    log_id = system.log.identity().log_id
    assert system.rig.fence.mirror(log_id).is_complete
    for forget in (system.server.flush, system.server.restart):
        forget()
        assert not system.rig.fence.mirror(log_id).is_complete
        # Then the next tick gives it the stored offsets, waiting for those who are storing, once
        system.database.asked.clear()
        system.tick()
        system.tick()
        assert system.database.asked.count("settled") == 1
        mirror = system.rig.fence.mirror(log_id)
        assert (mirror.lowest_offsets, mirror.is_complete) == ({0: 10}, True)


# --- Breaker and flush ----------------------------------------------------------------------------


def test_while_the_breaker_is_open_postgresql_is_not_asked_and_the_policy_goes_on_deciding(system: System) -> None:
    system.tick()
    system.append(0, 30_000)
    system.log.commit(system.log.identity().log_id, 0, 0)
    system.log.commit(system.log.identity().log_id, 1, 0)
    system.rig.store.pause(BREAKER, actor="drain", why="down")
    system.database.asked.clear()
    system.tick()
    assert system.database.asked == []
    assert (system.rate().rate, system.rate().base_rate, system.rate().lag) == (100.0, 550.0, 30_000)
    system.rig.store.resume(BREAKER, generation=None, actor="prober", why="well")
    assert system.rate().rate == 550.0


def test_after_a_flush_the_reasons_set_by_hand_come_back(system: System) -> None:
    system.database.pauses = [OperatorPause(OPERATOR, "ann@desk", "maintenance", 1e9)]
    system.tick()
    system.server.flush()
    assert system.tick().restored
    pauses = system.rig.store.state().pauses
    assert pauses is not None
    assert [(pause.reason, pause.actor, pause.why) for pause in pauses] == [(OPERATOR, "ann@desk", "maintenance")]
    assert not system.tick().restored
    assert system.events(ControlEventKind.STATE_RESTORED) == 1


def test_without_postgresql_the_reasons_stay_unknown_and_the_rate_is_the_floor(system: System) -> None:
    # Given a flush while PostgreSQL is away
    system.append(0, 10)
    system.log.commit(system.log.identity().log_id, 0, 0)
    system.log.commit(system.log.identity().log_id, 1, 0)
    system.tick()
    system.server.flush()
    system.database.is_unavailable = True
    system.database.asked.clear()
    # When
    report = system.tick()
    # Then nobody starts to consume, and little is let in
    assert not report.restored
    assert system.database.asked == ["pauses"]  # once is enough for a server that may be frozen
    assert system.rig.store.state().pauses is None
    assert (system.rate().rate, system.rate().mode, system.rate().lag) == (100.0, Mode.NORMAL, 10)
    # And when it is back, so is everything
    system.database.is_unavailable = False
    assert system.tick().restored
    assert (system.rate().rate, system.rig.store.state().pauses) == (1000.0, ())


# --- Stalled drainers -----------------------------------------------------------------------------


def stall(system: System, ticks: int) -> list[int]:
    """Tick, and tell which partitions' drainers were ended."""
    ended: list[int] = []
    for _ in range(ticks):
        ended += system.tick().terminated
    return ended


def test_a_drainer_that_makes_no_progress_is_ended_after_fifteen_seconds(system: System) -> None:
    # Given two partitions with lag, one of which moves; both are held
    system.tick()
    system.append(0, 100)
    system.append(1, 100)
    system.database.held = {0, 1}
    system.database.stored = {0: 7, 1: 0}
    for moved in (10, 20, 30):
        system.database.stored[1] = moved
        assert system.tick().terminated == ()  # the first time that it is seen standing there counts as 0 s
    # When the time is up
    system.database.stored[1] = 40
    report = system.tick()
    # Then
    assert report.terminated == (0,)
    [event] = [e for e in system.rig.events.last(100) if e.kind is ControlEventKind.DRAINER_TERMINATED]
    assert event.data == {"partition": "0", "offset": "7"}
    assert event.actor == "controller"
    assert "15 s" in event.why


def test_a_stall_is_found_although_ticks_take_longer_than_a_short_period(system: System) -> None:
    # Given a controller that ticks every second, and ticks that take four
    system.rig = memory_rig(control_settings("redis://nowhere", regulate_seconds=1.0), system.server)
    system.tick()
    system.append(0, 100)
    system.database.held = {0}
    # When nothing is stored for longer than a drainer may take, then it is ended
    ended: list[int] = []
    for _ in range(6):
        ended += system.tick(after=4.0).terminated
    assert ended == [0]


def test_the_next_drainer_gets_the_same_time_before_it_is_ended(system: System) -> None:
    # Given a partition whose drainer was ended
    system.tick()
    system.append(0, 100)
    system.database.held = {0}
    assert stall(system, 4) == [0]
    # When the next one stands still too, then it is ended after fifteen seconds of its own
    assert stall(system, 2) == []
    assert stall(system, 1) == [0]
    # And meanwhile it is known for how long nothing was stored
    consumption = system.rate().consumption
    assert consumption is not None
    assert (consumption.no_progress_seconds or {})[0] >= 30.0


def test_a_drainer_that_was_not_ended_is_looked_at_again_at_each_tick(system: System) -> None:
    # Given a partition that stands still, and a drainer that has still sent something when the time is up
    system.tick()
    system.append(0, 100)
    assert stall(system, 4) == []
    assert system.database.asked.count("terminate 0") == 1
    # When it is quiet a tick later, then it is ended
    system.database.held = {0}
    assert stall(system, 1) == [0]
    # And the next one is left in peace until the time has passed again, and so is one that stands elsewhere
    assert stall(system, 1) == []
    system.database.stored = {0: 50}
    assert stall(system, 3) == []
    # And it gets no peace by what its partition did elsewhere
    system.database.held = set()
    assert stall(system, 1) == []
    system.database.held = {0}
    assert stall(system, 1) == [0]


def test_an_event_of_another_version_does_not_hinder_the_end_of_a_drainer(system: System) -> None:
    for data in ({}, {"partition": "0"}, {"partition": "zero", "offset": "1"}):
        system.rig.events.record(ControlEventKind.DRAINER_TERMINATED, actor="newer", why="w", data=data)
    system.append(0, 100)
    system.database.held = {0}
    assert stall(system, 5) == [0]


def test_nobody_is_ended_where_there_is_no_lag(system: System) -> None:
    system.append(0, 100)
    system.database.held = {0, 1}
    system.database.stored = {0: 100}
    assert stall(system, 10) == []


def test_nobody_is_ended_while_paused_nor_for_having_been_paused(system: System) -> None:
    system.append(0, 100)
    system.database.held = {0}
    system.tick()
    system.rig.store.pause(OPERATOR, actor="ann", why="wait")
    assert stall(system, 10) == []
    system.rig.store.resume(OPERATOR, generation=None, actor="ann", why="go")
    assert stall(system, 3) == []
    assert stall(system, 1) == [0]


def test_a_partition_that_nobody_holds_is_no_event(system: System) -> None:
    system.append(0, 100)
    assert stall(system, 10) == []
    assert "terminate 0" in system.database.asked
    assert system.events(ControlEventKind.DRAINER_TERMINATED) == 0


def test_two_controllers_that_alternate_see_the_same_stall(system: System) -> None:
    system.tick()
    system.append(0, 100)
    system.database.held = {0}
    ended = [system.tick(actor=f"controller-{number % 2}").terminated for number in range(4)]
    assert ended == [(), (), (), (0,)]


def test_a_drainer_that_cannot_be_ended_is_a_problem_not_a_failure(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.tick()
    system.append(0, 100)
    system.database.held = {0}

    def away(log_id: str, partition: int) -> bool:
        raise SinkUnavailableError("gone")

    monkeypatch.setattr(system.database, "terminate", away)
    assert stall(system, 3) == []
    assert system.tick().problems == ("The drain of partition 0 makes no progress and could not be terminated: gone",)
    assert [(alarm.code, alarm.partition) for alarm in system.rate().alarms] == [(AlarmCode.DRAINER_NOT_ENDED, 0)]


def test_bands_set_by_hand_hold_from_the_next_tick_and_the_drain_rate_is_measured_between_ticks() -> None:
    # Given a loop whose lag is above the thresholds that somebody sets
    system = System()
    system.log.append([(0, b"{}")] * 200)
    system.tick()
    system.rig.store.set_bands(Bands(500.0, 50.0, 10, 100, "ann@host", "a slow disk", system.clock.now()))
    # When the next tick decides, and 100 events were stored since
    system.database.stored = {0: 100}
    system.tick(after=5.0)
    # Then it went by the new bands, and knows the pace
    published = system.rate()
    assert (published.base_rate, published.mode) == (50.0, Mode.DEGRADED)
    assert published.consumption is not None
    assert published.consumption.drain_rate == pytest.approx(20.0)


def test_after_a_flush_an_override_and_bands_come_back() -> None:
    # Given both, kept in PostgreSQL, and a store that was flushed
    system = System()
    now = system.clock.now()
    system.database.override = Override(300.0, now + 600.0, "ann@host", "a test", now)
    system.database.bands = Bands(500.0, 50.0, 10, 100, "ann@host", "a slow disk", now)
    # When the first tick restores
    system.tick()
    # Then the override is the effective rate, and the bands decide below it
    state = system.rig.store.state()
    assert (state.override, state.bands) == (system.database.override, system.database.bands)
    assert (system.rate().rate, system.rate().base_rate) == (300.0, 500.0)


# --- What processes find wrong with themselves ----------------------------------------------------------------------


def test_a_worker_whose_loop_fails_is_an_alarm_of_the_system(system: System) -> None:
    system.tick()
    system.rig.troubles.report(
        "batches@host", [Trouble("loop_fails", "the control follower of this process fails: ValueError: quota")]
    )
    report = system.tick()
    [alarm] = system.rate().alarms
    assert (alarm.code, alarm.what) == (
        AlarmCode.LOOP_FAILS, "batches@host: the control follower of this process fails: ValueError: quota",
    )  # fmt: skip
    assert report.database_answered
    system.rig.troubles.report("batches@host", [])
    system.tick()
    assert system.rate().alarms == ()


@pytest.mark.parametrize(
    ("code", "words", "status", "rate_level"),
    [
        (ProblemCode.LOG_FULL, "ingest@host/1: it fails: clients get 503 there", "critical", None),
        (ProblemCode.LOG_DOWN, "ingest@host/1: it fails", "critical", None),
        (
            ProblemCode.BUCKET_UNAVAILABLE,
            "ingest@host/1: it fails: the share of the last known rate holds",
            "degraded",
            "degraded",
        ),
        (AlarmCode.LOOP_FAILS, "ingest@host/1: it fails", "degraded", None),
    ],
)
def test_what_only_one_ingest_process_knows_is_the_health_of_the_system_everywhere(
    system: System, code: str, words: str, status: str, rate_level: str | None
) -> None:
    # Given a problem that one ingest process reports
    system.tick()
    system.rig.troubles.report("ingest@host/1", [Trouble(code, "it fails")])
    system.tick()
    # When the terminal, the page and another ingest process judge
    now = system.clock.monotonic()
    seen = health_inputs(
        HealthSources(
            wall=system.clock.now(),
            now=now,
            control=ControlSnapshot(system.rig.store.state(), read_at=now, published_at=now),
            store_problem=None,
            settings=system.rig.settings,
            log=LogStatus(answers=True, is_full=False, problem=None),
            rate=1000.0,
            available_permissions=None,
            is_local=False,
            process="ingest@host/2",
        )
    )
    terminal = read_status(
        StatusContext(system.rig.settings, system.clock, system.rig.store, system.rig.events, system.log)
    )
    # Then they have one verdict
    judged = [health.document_of(seen), view.document_of(seen), status_document(terminal)]
    assert [document["status"] for document in judged] == [status] * 3
    assert judged[0]["reasons"][0].startswith(words)
    assert judged[1]["reasons"] == judged[2]["reasons"]
    [reason] = judged[2]["reasons"]
    assert reason["what"] == judged[0]["reasons"][0]
    assert "ingest@host/1" in reason["what"] + reason["lookAt"]
    assert judged[1]["rateLevel"] == judged[2]["rateLevel"] == rate_level
    # And the process that found it names it once
    own = replace(
        seen,
        process="ingest@host/1",
        is_log_full=code == ProblemCode.LOG_FULL,
        is_bucket_unavailable=code == ProblemCode.BUCKET_UNAVAILABLE,
        log_problem="it fails" if code == ProblemCode.LOG_DOWN else None,
        loop_problems=("it fails",) if code == AlarmCode.LOOP_FAILS else (),
    )
    assert len(health.document_of(own)["reasons"]) == 1
    # When it takes that back
    system.rig.troubles.report("ingest@host/1", [])
    system.tick()
    assert system.rate().alarms == ()


def test_a_database_that_can_hold_nothing_is_critical_by_its_name(system: System) -> None:
    # Given a control loop whose database is changed for another, in which nothing can be stored
    system.tick()
    system.database.refusal = SinkMisconfiguredError("this PostgreSQL can't be used: it has the encoding LATIN1")
    system.tick()
    # Then the reason is one alarm, critical, and the log's word counts for the lag
    [alarm] = system.rate().alarms
    assert (alarm.code, alarm.severity) == (AlarmCode.DATABASE_REFUSED, Severity.CRITICAL)
    assert "it has the encoding LATIN1" in alarm.what
    system.database.refusal = None
    system.tick()
    assert system.rate().alarms == ()


def test_a_database_that_refuses_the_prober_is_critical_while_the_breaker_is_open(system: System) -> None:
    # Given a running system: its ticks have a session, and do not ask while the breaker is open
    system.tick()
    system.rig.store.pause(PauseReason.BREAKER, actor="batches", why="connection refused")
    system.rig.troubles.report("prober", [Trouble(AlarmCode.DATABASE_REFUSED, "no connection: wrong password")])
    system.tick()
    # Then what the prober was told is the system's alarm
    [alarm] = system.rate().alarms
    assert (alarm.code, alarm.severity) == (AlarmCode.DATABASE_REFUSED, Severity.CRITICAL)
    assert alarm.what == "The database is refused, and nothing is stored: no connection: wrong password"
    # And it is one, if the tick is refused too
    system.rig.store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="well")
    system.database.refusal = SinkMisconfiguredError("no connection: wrong password")
    system.tick()
    assert [alarm.code for alarm in system.rate().alarms] == [AlarmCode.DATABASE_REFUSED]


def test_a_postgresql_that_the_start_refused_is_critical(system: System) -> None:
    system.server_problem = "it has the encoding LATIN1"
    system.tick()
    assert [(one.code, one.severity) for one in system.rate().alarms] == [
        (AlarmCode.DATABASE_REFUSED, Severity.CRITICAL)
    ]


def test_a_refused_postgresql_beside_an_archive_stops_nothing(system: System) -> None:
    # Given an archive as the sink, and a PostgreSQL that is refused
    system.rig.settings = replace(system.rig.settings, event_sink_url="file:///archive")
    system.server_problem = "it has the encoding LATIN1"
    # Then it is logged, and no alarm says that nothing is stored
    assert "does not keep what operators set: it has the encoding LATIN1" in system.tick().problems[0]
    assert system.rate().alarms == ()
    # But a refused archive is one
    system.database.refusal = SinkMisconfiguredError("/archive is empty")
    system.tick()
    [alarm] = system.rate().alarms
    assert (alarm.code, alarm.severity) == (AlarmCode.DATABASE_REFUSED, Severity.CRITICAL)
    assert alarm.what == "The archive is refused, and nothing is stored: /archive is empty"
    assert alarm.look_at.startswith("docs/archive.md")


def test_a_standby_is_refused_only_if_it_is_still_one_at_the_next_tick(system: System) -> None:
    def alarm_of_a_tick() -> tuple[str, Severity]:
        system.tick()
        [alarm] = system.rate().alarms
        return alarm.code, alarm.severity

    brief, lasting = (AlarmCode.OFFSETS_UNKNOWN, Severity.DEGRADED), (AlarmCode.DATABASE_REFUSED, Severity.CRITICAL)
    system.tick()
    # Given a failover: no server answers, and then the one that is a standby now
    system.database.is_unavailable = True
    assert alarm_of_a_tick() == brief
    system.database.is_unavailable = False
    system.database.refusal = SinkStandbyError()
    # Then it is a database that does not answer; only one that stays a standby is refused
    assert alarm_of_a_tick() == brief
    assert [alarm_of_a_tick() for _ in range(2)] == [lasting, lasting]
    # And the next failover counts anew
    system.database.refusal = None
    system.tick()
    assert system.rate().alarms == ()
    system.database.refusal = SinkStandbyError()
    assert alarm_of_a_tick() == brief


def test_too_few_sessions_are_named_and_hold_nothing_up(system: System) -> None:
    system.tick()
    rate = system.rate().rate
    system.session_problem = "it allows at most 7 sessions"
    system.tick()
    [alarm] = system.rate().alarms
    assert (alarm.code, alarm.severity) == (AlarmCode.FEW_SESSIONS, Severity.DEGRADED)
    assert "at most 7 sessions" in alarm.what
    assert system.rate().rate == rate


def test_one_problem_of_many_ingest_processes_is_one_alarm(system: System) -> None:
    system.tick()
    for number in range(5):
        system.rig.troubles.report(f"ingest@host/{number}", [Trouble(ProblemCode.LOG_FULL, "the event log is full")])
    system.tick()
    [alarm] = system.rate().alarms
    assert alarm.what == "ingest@host/0, ingest@host/1, ingest@host/2 and 2 more: the event log is full"


def test_a_workers_name_reaches_readers_as_text(system: System) -> None:
    # Given a worker with an escape sequence in its name
    system.tick()
    system.rig.troubles.report("batches@\x1b[2Jhost\n", [Trouble("loop_fails", "it fails")])
    system.tick()
    [alarm] = system.rate().alarms
    assert alarm.what == r"batches@\x1b[2Jhost : it fails"
    assert not set(alarm.what + alarm.look_at) & set("\x1b\n")


def test_why_a_partition_stores_nothing_for_half_a_minute_is_told_however_small_its_lag(system: System) -> None:
    # Given two partitions with a small lag, one of which moves
    system.tick()
    system.append(0, 3)
    system.append(1, 100)
    for moved in range(6):  # the first time that it is seen standing there counts as 0 s
        system.database.stored[1] = moved
        system.tick()
    assert system.rate().alarms == ()
    assert "why 0" not in system.database.asked
    # When the time is up
    system.database.stored[1] = 50
    system.tick()
    # Then the likely reason is told, critical
    [alarm] = system.rate().alarms
    assert (alarm.code, alarm.severity, alarm.partition) == (AlarmCode.STANDS_STILL, Severity.CRITICAL, 0)
    assert alarm.what == "partition 0: ann has locked it"
    # And no longer once something is stored
    system.database.stored[0] = 1
    system.tick()
    assert system.rate().alarms == ()


def test_for_how_long_a_partition_stores_nothing_is_published_unless_it_is_paused(system: System) -> None:
    # Given two partitions with events, one of which moves, and one that is paused
    system.tick()
    for _ in range(8):
        system.append(0, 10)
        system.append(1, 10)
        system.database.stored[1] = system.database.stored.get(1, 0) + 5
        system.tick()
    # Then the seconds since its last stored event are published for each
    assert _no_progress(system) == {0: 35.0, 1: 0.0}
    # And a pause is no lack of progress
    system.rig.store.pause(PauseReason.LOG_GAP, actor="drain", why="a hole", partition=0)
    system.tick()
    assert set(_no_progress(system)) == {1}


def _no_progress(system: System) -> dict[int, float]:
    consumption = system.rate().consumption
    assert consumption is not None
    assert consumption.no_progress_seconds is not None
    return dict(consumption.no_progress_seconds)


# --- The store's wall clock is stepped ----------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-3600.0, -20.0, 3600.0])
def test_an_unknown_lags_rate_decays_in_time_whatever_the_clock_does(system: System, seconds: float) -> None:
    # Given a known lag, then an unknown one for three periods
    system.append(0, 20_000)
    system.tick()
    system.log.stop()
    for _ in range(3):
        system.tick()
    # When the store's clock is stepped
    system.clock.step(seconds)
    # Then the rate holds for three more, and halves in each from then on
    rates = [round(system.tick().published.rate, 3) for _ in range(7)]  # type: ignore[union-attr]
    assert rates == [775.0] * 3 + [387.5, 193.75, 100.0, 100.0]


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_the_pace_of_storing_is_that_of_the_time_that_passed(system: System, seconds: float) -> None:
    system.append(0, 1000)
    system.tick()
    system.clock.step(seconds)
    system.database.stored = {0: 100}
    report = system.tick(after=5.0)
    assert report.published is not None
    assert report.published.consumption is not None
    assert report.published.consumption.drain_rate == pytest.approx(20.0)


# --- Clocks that differ -------------------------------------------------------------------------------


def _of_clocks(system: System) -> list[str]:
    system.tick()
    alarms = system.rate().alarms
    assert {(alarm.code, alarm.severity) for alarm in alarms} <= {(AlarmCode.CLOCKS_DIFFER, Severity.DEGRADED)}
    assert all("time synchronisation (NTP, chrony)" in alarm.look_at for alarm in alarms)
    return [alarm.what for alarm in alarms]


@pytest.mark.parametrize(("ahead", "words"), [(3.0, "3.0 s ahead of"), (-3600.0, "3,600.0 s behind")])
def test_a_clock_of_postgresql_that_differs_is_named_until_it_agrees(system: System, ahead: float, words: str) -> None:
    system.database.clock_ahead = ahead
    assert _of_clocks(system) == [f"PostgreSQL's clock is {words} the control store's (Redis)"]
    # Whatever that of the process that compares them says
    system.own_clock.ahead = ahead
    assert f"PostgreSQL's clock is {words} the control store's (Redis)" in _of_clocks(system)
    system.own_clock.ahead = 0.0
    system.database.clock_ahead = 0.9
    assert _of_clocks(system) == []


@pytest.mark.parametrize(("ahead", "words"), [(3.0, "3.0 s ahead of"), (-3.0, "3.0 s behind")])
def test_the_clock_of_the_process_that_ticks_is_compared_too(system: System, ahead: float, words: str) -> None:
    system.own_clock.ahead = ahead
    assert _of_clocks(system) == [f"controller: its clock is {words} the control store's (Redis)"]
    system.own_clock.ahead = 0.0
    assert _of_clocks(system) == []


def test_a_slow_tick_is_no_difference_of_clocks(system: System) -> None:
    # Given a process that gets no CPU for long before PostgreSQL's answer, and after it
    system.database.before_answer = lambda: system.clock.advance(60.0)
    assert _of_clocks(system) == []
    # When PostgreSQL's clock is off by more than could be the wait's
    system.database.clock_ahead = 100.0
    assert len(_of_clocks(system)) == 1
    system.database.clock_ahead = -100.0
    assert len(_of_clocks(system)) == 1


def test_a_process_whose_clock_differs_is_named_and_the_rate_is_as_it_was(system: System) -> None:
    system.tick()
    trouble = Trouble(AlarmCode.CLOCKS_DIFFER, "its clock is 3.0 s ahead of the control store's (Redis)")
    system.rig.troubles.report("batches@host", [trouble])
    assert _of_clocks(system) == ["batches@host: its clock is 3.0 s ahead of the control store's (Redis)"]
    [alarm] = system.rate().alarms
    assert "on the host of batches@host" in alarm.look_at
    assert (system.rate().rate, system.rate().mode) == (1000.0, Mode.NORMAL)


# --- The accounts' shares ------------------------------------------------------------------------------


def sharing(system: System, **changes: Any) -> System:
    system.rig.settings = replace(system.rig.settings, **{"admission_shares": True} | changes)
    return system


def test_a_tick_shares_out_the_rate_by_the_reports_of_all_processes(system: System) -> None:
    # Given two processes, a rate of 1,000, and a bucket at the level where the shares keep it
    sharing(system)
    system.clock.advance(5.0)
    system.rig.offers.report("one", Offered({"heavy": 3000.0, "small": 10.0}, fill=0.4))
    system.rig.offers.report("two", Offered({"heavy": 2000.0, "other": 90.0}, fill=0.6))
    # When the controller ticks
    system.tick(after=0.0)
    # Then the heavy account has what the others leave
    shares = system.rate().shares
    assert shares == Shares(900.0, 1000.0, {"heavy": 5000.0})
    # When the processes fall silent, there is nothing to share out
    system.tick()
    assert system.rate().shares == Shares(None, 1000.0, {})


def test_shares_are_of_the_effective_rate(system: System) -> None:
    sharing(system)
    system.tick()
    system.rig.store.set_override(300.0, until=system.clock.now() + 60, actor="ann", why="a test")
    system.clock.advance(5.0)
    system.rig.offers.report("one", Offered({"heavy": 3000.0}))
    system.tick(after=0.0)
    assert system.rate().shares == Shares(300.0, 300.0, {"heavy": 3000.0})
    system.rig.store.pause(BREAKER, actor="c", why="a test")
    system.clock.advance(5.0)
    system.rig.offers.report("one", Offered({"heavy": 3000.0}))
    system.tick(after=0.0)
    assert system.rate().shares == Shares(100.0, 100.0, {"heavy": 3000.0})


def test_without_shares_and_limits_a_tick_reads_no_reports(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.rig.offers, "reported", lambda: pytest.fail("it was read"))
    system.tick()
    assert system.rate().shares is None


def test_without_shares_a_hard_limit_needs_to_know_what_its_account_offers(system: System) -> None:
    sharing(system, admission_shares=False, account_limits="192.0.2.1=100")
    system.clock.advance(5.0)
    system.rig.offers.report("one", Offered({"192.0.2.1": 3000.0, "192.0.2.2": 3000.0}))
    system.tick(after=0.0)
    assert system.rate().shares == Shares(None, 1000.0, {"192.0.2.1": 3000.0})


# --- Limits that operators set for accounts -------------------------------------------------------------

ASKED = OperatorLimit("192.0.2.1", 100.0, 2.0, "ann@host", "a contract", 5.0)


def test_limits_of_accounts_are_restored_with_the_pauses_and_hold_in_the_same_tick(system: System) -> None:
    sharing(system, admission_shares=False)
    system.database.accounts = [ASKED]
    system.rig.offers.report("one", Offered({"192.0.2.1": 3000.0}))
    assert system.tick(after=0.0).restored
    assert system.rig.store.state().accounts == {ASKED.account: ASKED}
    assert system.rate().shares == Shares(None, 1000.0, {"192.0.2.1": 3000.0})
    # And each tick does not read them again
    system.database.asked.clear()
    system.tick()
    assert "pauses" not in system.database.asked


def test_the_weight_of_an_operator_counts_in_the_shares(system: System) -> None:
    sharing(system, account_weights="192.0.2.1=1")
    system.database.accounts = [replace(ASKED, rate=None, weight=4.0)]
    system.rig.offers.report("one", Offered({"192.0.2.1": 3000.0, "192.0.2.2": 3000.0}))
    system.tick(after=0.0)
    shares = system.rate().shares
    assert shares is not None
    assert shares.share == pytest.approx(200.0)


def test_limits_alone_are_restored_where_an_earlier_version_restored_the_pauses(system: System) -> None:
    system.rig.store.restore([], actor="older")
    system.database.accounts = [ASKED]
    assert system.tick().restored
    assert system.rig.store.state().accounts == {ASKED.account: ASKED}


def test_missing_limits_neither_lower_the_rate_nor_ask_while_the_breaker_is_open(system: System) -> None:
    # Given a database that is away, and pauses that are known
    system.rig.store.restore([], actor="older")
    system.database.is_unavailable = True
    system.tick()
    assert system.rate().rate == 1000.0
    assert "limits of accounts" in system.rate().alarms[0].what
    system.rig.store.pause(BREAKER, actor="worker", why="PostgreSQL")
    system.database.asked.clear()
    system.tick()
    assert "pauses" not in system.database.asked
