"""The prober: at most one at a time, and only the very occurrence that it has seen is lifted."""

from dataclasses import replace

import pytest

from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryServer
from pipeline.errors import (
    SinkContentionError,
    SinkMisconfiguredError,
    SinkStandbyError,
    SinkUnavailableError,
    StoreUnavailableError,
)
from pipeline.names import LEASE_PROBE, AlarmCode, BreakerState, Mode, PauseReason
from pipeline.ports.control import Consumption, Trouble
from pipeline.probe import STANDBY_SECONDS_MIN, Backoff, ProbeOutcome, ProbeReport, probe
from support.control import ControlRig, control_settings, memory_rig

BREAKER = PauseReason.BREAKER


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> MemoryServer:
    return MemoryServer(clock)


@pytest.fixture
def rig(server: MemoryServer) -> ControlRig:
    rig = memory_rig(control_settings("redis://nowhere"), server)
    rig.store.restore([], actor="controller")
    return rig


class Sink:
    """A database that counts what it is asked, and what the system looked like meanwhile."""

    def __init__(self, rig: ControlRig, error: Exception | None = None) -> None:
        self.rig = rig
        self.error = error
        self.seen: list[BreakerState] = []

    def probe(self) -> None:
        self.seen.append(self.rig.store.state().breaker)
        if self.error is not None:
            raise self.error


def ask(rig: ControlRig, sink: Sink, backoff: Backoff | None = None) -> ProbeReport:
    backoff = backoff or Backoff(rig.settings, ManualClock())
    return probe(
        rig.store, rig.leases, sink.probe, backoff, settings=rig.settings, actor="prober", troubles=rig.troubles
    )


def test_nothing_is_asked_while_the_breaker_is_closed(rig: ControlRig) -> None:
    sink = Sink(rig)
    rig.store.pause(PauseReason.OPERATOR, actor="ann", why="wait")
    assert ask(rig, sink).outcome is ProbeOutcome.NOT_OPEN
    assert sink.seen == []


def test_nothing_is_asked_while_it_is_unknown_what_holds(rig: ControlRig, server: MemoryServer) -> None:
    server.flush()
    rig.store.pause(BREAKER, actor="drain", why="down")
    assert ask(rig, Sink(rig)).outcome is ProbeOutcome.NOT_OPEN


def test_a_success_lifts_the_reason_and_the_breaker_reads_half_open_meanwhile(rig: ControlRig) -> None:
    rig.store.pause(BREAKER, actor="drain", why="down")
    sink = Sink(rig)
    assert ask(rig, sink).outcome is ProbeOutcome.LIFTED
    assert sink.seen == [BreakerState.HALF_OPEN]
    state = rig.store.state()
    assert (state.breaker, state.pauses) == (BreakerState.CLOSED, ())
    assert ask(rig, sink).outcome is ProbeOutcome.NOT_OPEN


@pytest.mark.parametrize("error", [SinkUnavailableError("still down"), SinkContentionError("still down")])
def test_a_failure_leaves_it_open_says_why_and_lets_the_next_one_try(rig: ControlRig, error: Exception) -> None:
    rig.store.pause(BREAKER, actor="drain", why="down")
    assert ask(rig, Sink(rig, error)) == ProbeReport(ProbeOutcome.FAILED, "still down")
    assert rig.store.state().breaker is BreakerState.OPEN
    assert ask(rig, Sink(rig)).outcome is ProbeOutcome.LIFTED


WRONG_PASSWORD = "no connection to PostgreSQL: FATAL: password authentication failed"


def refusals(rig: ControlRig) -> list[Trouble]:
    return [trouble for problems in rig.troubles.reported().values() for trouble in problems]


def test_a_sink_that_answers_and_refuses_is_reported_until_it_does_no_more(rig: ControlRig) -> None:
    rig.store.pause(BREAKER, actor="drain", why="connection refused")
    ask(rig, Sink(rig, SinkUnavailableError("connection refused")))
    assert refusals(rig) == []
    # When the server is back with another password
    for _ in range(2):
        ask(rig, Sink(rig, SinkMisconfiguredError(WRONG_PASSWORD)))
        # Then that is reported, once
        assert refusals(rig) == [Trouble(AlarmCode.DATABASE_REFUSED, WRONG_PASSWORD)]
    # And no longer once it fails in another way, or works
    ask(rig, Sink(rig, SinkUnavailableError("connection refused")))
    assert refusals(rig) == []
    ask(rig, Sink(rig, SinkMisconfiguredError(WRONG_PASSWORD)))
    assert ask(rig, Sink(rig)).outcome is ProbeOutcome.LIFTED
    assert refusals(rig) == []


def test_a_standby_is_reported_only_if_it_is_one_for_longer_than_a_failover(
    rig: ControlRig, clock: ManualClock
) -> None:
    # Given a failover: the breaker is open, and DATABASE_URL reaches the server that is a standby now
    rig.store.pause(BREAKER, actor="drain", why="terminating connection")
    standby = Sink(rig, SinkStandbyError("it is a standby"))
    for _ in range(3):
        assert ask(rig, standby).outcome is ProbeOutcome.FAILED
        assert refusals(rig) == []
        clock.advance(1)
    # When it stays one, it is reported
    clock.advance(STANDBY_SECONDS_MIN)
    assert ask(rig, standby).outcome is ProbeOutcome.FAILED
    assert refusals(rig) == [Trouble(AlarmCode.DATABASE_REFUSED, "it is a standby")]


def test_a_refusal_stays_reported_while_the_prober_waits(rig: ControlRig, clock: ManualClock) -> None:
    # Given a breaker that opens again and again, and then a refusal
    settings = replace(rig.settings, probe_seconds=60.0, probe_wait_seconds_max=600.0)
    backoff = Backoff(settings, clock)
    store(rig, clock, consumed=100)
    ask(rig, Sink(rig), backoff)
    for _ in range(2):
        rig.store.pause(BREAKER, actor="drain", why="no right")
        clock.advance(120.0)
        assert ask(rig, Sink(rig), backoff).outcome is ProbeOutcome.LIFTED
    rig.store.pause(BREAKER, actor="drain", why="no right")
    clock.advance(120.0)
    assert ask(rig, Sink(rig, SinkMisconfiguredError("no right")), backoff).outcome is ProbeOutcome.FAILED
    # When it waits for longer than reports are kept
    rig.store.resume(BREAKER, generation=None, actor="ann", why="by hand")
    rig.store.pause(BREAKER, actor="drain", why="no right")
    for _ in range(4):
        clock.advance(20.0)
        assert ask(rig, Sink(rig), backoff).outcome is ProbeOutcome.WAITING
    # Then it is still reported
    assert refusals(rig) == [Trouble(AlarmCode.DATABASE_REFUSED, "no right")]


def test_two_never_ask_at_once_and_one_that_died_does_not_shut_out_the_others(
    rig: ControlRig, clock: ManualClock
) -> None:
    rig.store.pause(BREAKER, actor="drain", why="down")
    sink = Sink(rig)
    rig.leases.take(LEASE_PROBE, seconds=8.0)  # a prober that was killed while it asked
    assert ask(rig, sink).outcome is ProbeOutcome.BUSY
    assert sink.seen == []
    clock.advance(8.1)
    assert ask(rig, sink).outcome is ProbeOutcome.LIFTED


def test_an_occurrence_that_ended_meanwhile_is_not_the_next_one(rig: ControlRig) -> None:
    rig.store.pause(BREAKER, actor="drain", why="first")

    class Slow(Sink):
        def probe(self) -> None:
            rig.store.resume(BREAKER, generation=None, actor="ann", why="by hand")
            rig.store.pause(BREAKER, actor="drain", why="second")

    assert ask(rig, Slow(rig)).outcome is ProbeOutcome.SUPERSEDED
    assert rig.store.state().breaker is BreakerState.OPEN


def test_a_reason_that_another_prober_lifted_before_the_lease_was_free_is_not_asked_for(
    rig: ControlRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.store.pause(BREAKER, actor="drain", why="down")
    take = rig.leases.take

    def take_late(name: str, *, seconds: float) -> str | None:
        rig.store.resume(BREAKER, generation=None, actor="another", why="well")
        return take(name, seconds=seconds)

    monkeypatch.setattr(rig.leases, "take", take_late)
    sink = Sink(rig)
    assert ask(rig, sink).outcome is ProbeOutcome.NOT_OPEN
    assert sink.seen == []


def test_a_store_that_goes_away_meanwhile_is_the_callers_matter(rig: ControlRig, server: MemoryServer) -> None:
    rig.store.pause(BREAKER, actor="drain", why="down")

    class Cutting(Sink):
        def probe(self) -> None:
            server.is_unavailable = True

    with pytest.raises(StoreUnavailableError):
        ask(rig, Cutting(rig))


# --- A breaker that opens again and again ---------------------------------------------------------------------------


def seconds_until_lifted(rig: ControlRig, clock: ManualClock, probers: list[Backoff]) -> float:
    """Open the breaker, let the probers take turns every half second, and return how long it was open."""
    rig.store.pause(BREAKER, actor="drain", why="no space left on device")
    opened_at = clock.monotonic()
    for tick in range(1000):
        if ask(rig, Sink(rig), probers[tick % len(probers)]).outcome is ProbeOutcome.LIFTED:
            return clock.monotonic() - opened_at
        clock.advance(0.5)
    raise AssertionError("it was never lifted")


def store(rig: ControlRig, clock: ManualClock, consumed: int) -> None:
    rig.store.publish_rate(
        base_rate=100.0, floor_rate=10.0, mode=Mode.NORMAL, lag=5, lag_known_at=clock.now(), actor="controller",
        consumption=Consumption({0: 5}, consumed, None),
    )  # fmt: skip


def test_a_breaker_that_opens_again_with_nothing_stored_is_left_open_for_longer_each_time(
    rig: ControlRig, clock: ManualClock
) -> None:
    # Given two probers and a disk on which small writes pass
    settings = replace(rig.settings, probe_seconds=2.0, probe_wait_seconds_max=10.0)
    probers = [Backoff(settings, clock), Backoff(settings, clock)]
    store(rig, clock, consumed=100)
    for prober in probers:
        ask(rig, Sink(rig), prober)
    # When the breaker opens again after each closing, then it stays open for longer, up to a bound
    assert [seconds_until_lifted(rig, clock, probers) for _ in range(6)] == [0.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    # And another reason to pause, or what is published again, is no sign of storing
    store(rig, clock, consumed=100)
    assert seconds_until_lifted(rig, clock, probers) == 10.0
    # Once a batch was stored, the count begins anew
    store(rig, clock, consumed=101)
    for prober in probers:
        ask(rig, Sink(rig), prober)
    assert [seconds_until_lifted(rig, clock, probers) for _ in range(3)] == [0.0, 2.0, 4.0]


def test_openings_are_counted_anew_after_a_flush_of_the_control_store(
    rig: ControlRig, clock: ManualClock, server: MemoryServer
) -> None:
    prober = Backoff(replace(rig.settings, probe_seconds=2.0), clock)
    for _ in range(3):
        seconds_until_lifted(rig, clock, [prober])
    # Given a prober that counts from a generation that the store has no more after the flush
    for consumed in (100, 101):
        store(rig, clock, consumed=consumed)
        ask(rig, Sink(rig), prober)
    server.flush()
    rig.store.restore([], actor="controller")
    assert [seconds_until_lifted(rig, clock, [prober]) for _ in range(3)] == [0.0, 2.0, 4.0]
