"""The prober: at most one at a time, and only the very occurrence that it has seen is lifted."""

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import SinkContentionError, SinkUnavailableError, StoreUnavailableError
from pipeline.names import LEASE_PROBE, BreakerState, PauseReason
from pipeline.probe import ProbeOutcome, ProbeReport, probe
from pipeline.store.memory import MemoryServer
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
    rig.store.restore([], by="controller")
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


def ask(rig: ControlRig, sink: Sink) -> ProbeReport:
    return probe(rig.store, rig.leases, sink.probe, settings=rig.settings, by="prober")


def test_nothing_is_asked_while_the_breaker_is_closed(rig: ControlRig) -> None:
    sink = Sink(rig)
    rig.store.pause(PauseReason.OPERATOR, by="ann", why="wait")
    assert ask(rig, sink).outcome is ProbeOutcome.NOT_OPEN
    assert sink.seen == []


def test_nothing_is_asked_while_it_is_unknown_what_holds(rig: ControlRig, server: MemoryServer) -> None:
    server.flush()
    rig.store.pause(BREAKER, by="drain", why="down")
    assert ask(rig, Sink(rig)).outcome is ProbeOutcome.NOT_OPEN


def test_a_success_lifts_the_reason_and_the_breaker_reads_half_open_meanwhile(rig: ControlRig) -> None:
    rig.store.pause(BREAKER, by="drain", why="down")
    sink = Sink(rig)
    assert ask(rig, sink).outcome is ProbeOutcome.LIFTED
    assert sink.seen == [BreakerState.HALF_OPEN]
    state = rig.store.state()
    assert (state.breaker, state.pauses) == (BreakerState.CLOSED, ())
    assert ask(rig, sink).outcome is ProbeOutcome.NOT_OPEN


@pytest.mark.parametrize("error", [SinkUnavailableError("still down"), SinkContentionError("still down")])
def test_a_failure_leaves_it_open_says_why_and_lets_the_next_one_try(rig: ControlRig, error: Exception) -> None:
    rig.store.pause(BREAKER, by="drain", why="down")
    assert ask(rig, Sink(rig, error)) == ProbeReport(ProbeOutcome.FAILED, "still down")
    assert rig.store.state().breaker is BreakerState.OPEN
    assert ask(rig, Sink(rig)).outcome is ProbeOutcome.LIFTED


def test_two_never_ask_at_once_and_one_that_died_does_not_shut_out_the_others(
    rig: ControlRig, clock: ManualClock
) -> None:
    rig.store.pause(BREAKER, by="drain", why="down")
    sink = Sink(rig)
    rig.leases.take(LEASE_PROBE, seconds=8.0)  # a prober that was killed while it asked
    assert ask(rig, sink).outcome is ProbeOutcome.BUSY
    assert sink.seen == []
    clock.advance(8.1)
    assert ask(rig, sink).outcome is ProbeOutcome.LIFTED


def test_an_occurrence_that_ended_meanwhile_is_not_the_next_one(rig: ControlRig) -> None:
    rig.store.pause(BREAKER, by="drain", why="first")

    class Slow(Sink):
        def probe(self) -> None:
            rig.store.resume(BREAKER, generation=None, by="ann", why="by hand")
            rig.store.pause(BREAKER, by="drain", why="second")

    assert ask(rig, Slow(rig)).outcome is ProbeOutcome.SUPERSEDED
    assert rig.store.state().breaker is BreakerState.OPEN


def test_a_reason_that_another_prober_lifted_before_the_lease_was_free_is_not_asked_for(
    rig: ControlRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.store.pause(BREAKER, by="drain", why="down")
    take = rig.leases.take

    def take_late(name: str, *, seconds: float) -> str | None:
        rig.store.resume(BREAKER, generation=None, by="another", why="well")
        return take(name, seconds=seconds)

    monkeypatch.setattr(rig.leases, "take", take_late)
    sink = Sink(rig)
    assert ask(rig, sink).outcome is ProbeOutcome.NOT_OPEN
    assert sink.seen == []


def test_a_store_that_goes_away_meanwhile_is_the_callers_matter(rig: ControlRig, server: MemoryServer) -> None:
    rig.store.pause(BREAKER, by="drain", why="down")

    class Cutting(Sink):
        def probe(self) -> None:
            server.is_away = True

    with pytest.raises(StoreUnavailableError):
        ask(rig, Cutting(rig))
