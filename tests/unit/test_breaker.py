"""The breaker of one process, and its tie to the shared state."""

import pytest

from pipeline.breaker import SinkBreaker
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryServer
from pipeline.errors import (
    BreakerOpenError,
    FencedError,
    LogUnavailableError,
    OffsetConflictError,
    PoisonedError,
    SinkContentionError,
    SinkUnavailableError,
    SluiceError,
)
from pipeline.names import PauseReason
from pipeline.ports.breaker import Breaker
from pipeline.ports.control import OperatorPause, Pause
from support.control import ControlRig, control_settings, memory_rig

BREAKER, OPERATOR = PauseReason.BREAKER, PauseReason.OPERATOR


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


@pytest.fixture
def breaker(rig: ControlRig, clock: ManualClock) -> SinkBreaker:
    return SinkBreaker(rig.settings, rig.store, clock, "drain-1")


def fail(breaker: Breaker, error: BaseException) -> BaseException:
    """Call through the breaker something that raises; returns what comes out."""

    def function() -> None:
        raise error

    with pytest.raises(type(error) if not isinstance(error, SinkUnavailableError) else SluiceError) as caught:
        breaker.call(function)
    return caught.value


def open_up(breaker: Breaker) -> BaseException:
    """Fail often enough; returns the last outcome."""
    outcomes = [fail(breaker, SinkUnavailableError(f"failure {number}")) for number in range(1, 6)]
    return outcomes[-1]


def held(rig: ControlRig) -> Pause | None:
    pauses = rig.store.state().pauses or ()
    return next((pause for pause in pauses if pause.reason is BREAKER), None)


def lift(rig: ControlRig) -> None:
    assert rig.store.resume(BREAKER, generation=None, actor="prober", why="well")


# --- Counting -------------------------------------------------------------------------------------


def test_results_and_failures_pass_through(breaker: SinkBreaker) -> None:
    assert breaker.call(lambda: 42) == 42
    error = SinkUnavailableError("down")
    assert fail(breaker, error) is error
    assert not breaker.is_open


def test_the_fifth_failure_in_a_row_opens_and_pauses(breaker: SinkBreaker, rig: ControlRig) -> None:
    for _ in range(4):
        assert isinstance(fail(breaker, SinkUnavailableError("down")), SinkUnavailableError)
        assert held(rig) is None
    last = fail(breaker, SinkUnavailableError("connection refused"))
    assert isinstance(last, BreakerOpenError)
    assert isinstance(last.__cause__, SinkUnavailableError)
    assert breaker.is_open
    pause = held(rig)
    assert pause is not None
    assert pause.actor == "drain-1"
    assert pause.why == "5 failures in a row until 22:13:20 UTC: connection refused"


def test_an_open_breaker_calls_nothing(breaker: SinkBreaker, clock: ManualClock) -> None:
    open_up(breaker)
    clock.advance(86_400.0)  # it never half-opens by itself
    called: list[int] = []
    with pytest.raises(BreakerOpenError):
        breaker.call(lambda: called.append(1))
    assert called == []


def test_a_success_begins_the_count_anew(breaker: SinkBreaker) -> None:
    for _ in range(3):
        for _ in range(4):
            fail(breaker, SinkUnavailableError("down"))
        breaker.call(lambda: None)
    assert not breaker.is_open


def test_a_look_up_that_succeeds_does_not_hide_that_storing_fails(breaker: SinkBreaker) -> None:
    for _ in range(4):
        fail(breaker, SinkUnavailableError("locked"))
        assert breaker.call(lambda: 42, stores=False) == 42
    assert isinstance(fail(breaker, SinkUnavailableError("locked")), BreakerOpenError)


@pytest.mark.parametrize(
    "error",
    [
        SinkContentionError(),
        OffsetConflictError(),
        PoisonedError(),
        FencedError(),
        LogUnavailableError(),
        ValueError("a defect"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_neither_count_nor_reset_the_count(breaker: SinkBreaker, error: BaseException) -> None:
    for _ in range(10):
        assert fail(breaker, error) is error
    assert not breaker.is_open
    for _ in range(4):
        fail(breaker, SinkUnavailableError("down"))
        fail(breaker, error)
    assert isinstance(fail(breaker, SinkUnavailableError("down")), BreakerOpenError)


def test_a_late_result_of_an_earlier_state_is_no_result_of_this_one(breaker: SinkBreaker, rig: ControlRig) -> None:
    # Given calls that started before the breaker opened, and end after it closed again
    def slow() -> None:
        open_up(breaker)
        lift(rig)
        breaker.reconcile(rig.store.state())
        for _ in range(4):
            fail(breaker, SinkUnavailableError("down"))
        raise SinkUnavailableError("late")

    # When the late failure arrives, it would be the fifth / Then it does not count
    with pytest.raises(SinkUnavailableError, match="late"):
        breaker.call(slow)
    assert not breaker.is_open


def test_a_late_success_does_not_close_an_open_breaker(breaker: SinkBreaker) -> None:
    assert isinstance(breaker.call(lambda: open_up(breaker)), BreakerOpenError)
    assert breaker.is_open


# --- The shared state -----------------------------------------------------------------------------


def test_it_stays_open_while_its_reason_holds_and_closes_when_it_was_lifted(
    breaker: SinkBreaker, rig: ControlRig
) -> None:
    open_up(breaker)
    breaker.reconcile(rig.store.state())
    assert breaker.is_open
    lift(rig)
    breaker.reconcile(rig.store.state())
    assert (breaker.is_open, breaker.call(lambda: 42), held(rig)) == (False, 42, None)


def test_after_closing_it_takes_as_many_failures_as_at_first(breaker: SinkBreaker, rig: ControlRig) -> None:
    open_up(breaker)
    lift(rig)
    breaker.reconcile(rig.store.state())
    for _ in range(4):
        assert isinstance(fail(breaker, SinkUnavailableError("down")), SinkUnavailableError)
    assert not breaker.is_open


def test_a_breaker_that_never_opened_needs_and_does_nothing(breaker: SinkBreaker, rig: ControlRig) -> None:
    rig.store.pause(BREAKER, actor="drain-2", why="another's")
    breaker.reconcile(rig.store.state())
    breaker.reconcile(None)
    assert not breaker.is_open
    assert held(rig) is not None


def test_two_that_open_share_one_reason(breaker: SinkBreaker, rig: ControlRig, clock: ManualClock) -> None:
    other = SinkBreaker(rig.settings, rig.store, clock, "drain-2")
    open_up(breaker)
    open_up(other)
    lift(rig)
    for each in (breaker, other):
        each.reconcile(rig.store.state())
        assert not each.is_open


def test_a_newer_occurrence_means_that_its_own_was_lifted(
    breaker: SinkBreaker, rig: ControlRig, clock: ManualClock
) -> None:
    open_up(breaker)
    lift(rig)
    open_up(SinkBreaker(rig.settings, rig.store, clock, "drain-2"))
    breaker.reconcile(rig.store.state())
    assert not breaker.is_open
    assert held(rig) is not None


def test_an_opening_that_could_not_be_stored_is_published_until_it_is(
    breaker: SinkBreaker, rig: ControlRig, server: MemoryServer
) -> None:
    # Given
    server.is_unavailable = True
    assert isinstance(open_up(breaker), BreakerOpenError)
    breaker.reconcile(None)
    server.is_unavailable = False
    state = rig.store.state()
    server.is_unavailable = True
    breaker.reconcile(state)  # it is back, and gone again
    assert breaker.is_open
    # When
    server.is_unavailable = False
    assert held(rig) is None
    breaker.reconcile(rig.store.state())
    # Then
    pause = held(rig)
    assert pause is not None
    assert "failure 5" in pause.why
    lift(rig)
    breaker.reconcile(rig.store.state())
    assert not breaker.is_open


@pytest.mark.parametrize("is_restored", [False, True])
def test_a_flush_is_not_a_lifted_reason(
    breaker: SinkBreaker, rig: ControlRig, server: MemoryServer, is_restored: bool
) -> None:
    # Given a system with some history, and a breaker that is open
    for _ in range(3):
        rig.store.pause(OPERATOR, actor="ann", why="wait")
        rig.store.resume(OPERATOR, generation=None, actor="ann", why="go")
    open_up(breaker)
    # When everything is forgotten
    server.flush()
    if is_restored:
        rig.store.restore([OperatorPause(OPERATOR, "ann", "wait", 1e9)], actor="controller")
    breaker.reconcile(rig.store.state())
    # Then it stays open and says so again, once
    assert breaker.is_open
    rig.store.restore([], actor="controller")
    first = held(rig)
    assert first is not None
    breaker.reconcile(rig.store.state())
    assert held(rig) == first
    # And it closes when that is lifted
    lift(rig)
    breaker.reconcile(rig.store.state())
    assert not breaker.is_open


def test_a_flush_that_was_seen_stays_seen_until_the_opening_is_stored_again(
    breaker: SinkBreaker, rig: ControlRig, server: MemoryServer
) -> None:
    # Given a flush that the breaker has seen, and a store that went away before it could say so
    open_up(breaker)
    server.flush()
    state = rig.store.state()
    server.is_unavailable = True
    breaker.reconcile(state)
    server.is_unavailable = False
    # When other changes count past its old generation
    rig.store.restore([OperatorPause(OPERATOR, "ann", "wait", 1e9)], actor="controller")
    rig.store.resume(OPERATOR, generation=None, actor="ann", why="go")
    # Then it does not take its reason for lifted
    breaker.reconcile(rig.store.state())
    assert breaker.is_open
    assert held(rig) is not None


def test_after_a_flush_it_joins_a_reason_that_another_has_published(
    breaker: SinkBreaker, rig: ControlRig, server: MemoryServer, clock: ManualClock
) -> None:
    other = SinkBreaker(rig.settings, rig.store, clock, "drain-2")
    for _ in range(3):
        rig.store.pause(OPERATOR, actor="ann", why="wait")
        rig.store.resume(OPERATOR, generation=None, actor="ann", why="go")
    open_up(breaker)
    open_up(other)
    server.flush()
    rig.store.restore([], actor="controller")
    other.reconcile(rig.store.state())
    breaker.reconcile(rig.store.state())
    assert breaker.is_open
    lift(rig)
    for each in (breaker, other):
        each.reconcile(rig.store.state())
        assert not each.is_open
