"""The contract of a rate and of bands that an operator set, on Redis and in memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from checks.testbed.waiting import while_it_lasts
from pipeline.clock import SystemClock
from pipeline.names import ControlEventKind, Mode, PauseReason
from pipeline.ports.control import Bands, Consumption, Override, rate_after_override
from support.control import ControlRig, control_settings, eventually, memory_rig, redis_rig

BANDS = Bands(500.0, 50.0, 100, 1000, "ann@host", "a slow disk", 1_700_000_000.5)


@pytest.fixture(params=["memory", "redis"])
def make_rig(request: pytest.FixtureRequest) -> Callable[[], ControlRig]:
    def make() -> ControlRig:
        if request.param == "memory":
            rig = memory_rig(control_settings("redis://nowhere"))
        else:
            rig = redis_rig(control_settings(request.getfixturevalue("control_redis").url))
        rig.store.restore([], actor="controller")
        return rig

    return make


@pytest.fixture
def rig(make_rig: Callable[[], ControlRig]) -> ControlRig:
    return make_rig()


def publish(rig: ControlRig, rate: float = 1000.0, consumption: Consumption | None = None) -> None:
    rig.store.publish_rate(
        base_rate=rate, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=rig.store.state().time,
        actor="controller", consumption=consumption,
    )  # fmt: skip


def rate(rig: ControlRig) -> float:
    found = rig.store.state().rate
    assert found is not None
    return found.rate


def kinds(rig: ControlRig) -> list[str]:
    return [event.kind.value for event in rig.events.last(100)]


def hold(rig: ControlRig, value: float, *, seconds: float = 60.0) -> Override:
    return rig.store.set_override(value, until=rig.store.state().time + seconds, actor="ann@host", why="an import")


def test_an_override_holds_at_once_and_over_the_controllers_ticks(rig: ControlRig) -> None:
    # Given a published rate
    publish(rig)
    before = rig.store.state()
    # When somebody sets another
    override = hold(rig, 300.0)
    # Then it holds under a newer version, also after the next ticks, with who and why
    state = rig.store.state()
    assert state.override == override
    assert (override.rate, override.actor, override.why) == (300.0, "ann@host", "an import")
    assert before.time <= override.since <= state.time
    assert state.rate is not None
    assert before.rate is not None
    assert state.rate.version > before.rate.version
    publish(rig, 900.0)
    assert rate(rig) == 300.0
    assert rate_after_override(rig.store.state()) == 900.0
    assert kinds(rig)[-3:] == ["rate_changed", "override_set", "rate_changed"]


def test_the_bucket_fills_at_the_overrides_rate(rig: ControlRig) -> None:
    publish(rig)
    hold(rig, 300.0)
    assert rig.bucket.take(needed=1, wanted=1, process="p").rate == 300.0


def test_an_override_ends_by_itself_and_whoever_writes_next_says_so(make_rig: Callable[[], ControlRig]) -> None:
    rig, version = make_rig(), 0

    def held(seconds: float) -> None:
        nonlocal rig, version
        rig = make_rig()
        publish(rig)
        hold(rig, 300.0, seconds=seconds)
        grant = rig.bucket.take(needed=1, wanted=1, process="p")
        assert grant.rate == 300.0
        version = grant.version

    # Given an override of a moment, and nobody who ticks
    while_it_lasts(held, 0.15)
    # When its time is up, then nobody reads it any more, before anybody has written
    eventually(lambda: rig.store.state().override is None)
    assert rate(rig) == 1000.0
    assert kinds(rig)[-1] == "rate_changed"
    # And the bucket goes by the policy's rate, under a newer version; its caller may not write the control state
    grant = rig.bucket.take(needed=1, wanted=1, process="p")
    assert grant.rate == 1000.0
    assert grant.version > version
    assert kinds(rig)[-1] == "rate_changed"
    # And the next who writes has recorded it, under a version that is not older
    assert not rig.store.clear_override(actor="ann@host", why="it is over")
    assert rate(rig) == 1000.0
    assert rig.bucket.take(needed=1, wanted=1, process="p").version >= grant.version
    assert kinds(rig)[-2:] == ["override_ended", "rate_changed"]
    assert rig.events.last(2)[0].why == "its time was up"


def test_a_new_override_takes_the_place_of_the_old(rig: ControlRig) -> None:
    publish(rig)
    hold(rig, 300.0)
    hold(rig, 400.0, seconds=30)
    assert rate(rig) == 400.0
    assert rig.store.clear_override(actor="bob@host", why="done")
    assert rate(rig) == 1000.0
    assert rig.store.state().override is None
    ended = [event for event in rig.events.last(100) if event.kind is ControlEventKind.OVERRIDE_ENDED]
    assert [(event.actor, event.why) for event in ended] == [("bob@host", "done")]


def test_clearing_what_does_not_hold_does_nothing(rig: ControlRig) -> None:
    publish(rig)
    before = kinds(rig)
    assert not rig.store.clear_override(actor="bob@host", why="done")
    assert not rig.store.clear_bands(actor="bob@host", why="done")
    assert kinds(rig) == before


def test_the_open_breaker_comes_before_an_override(rig: ControlRig) -> None:
    # Given an override above the floor, and one below
    publish(rig)
    hold(rig, 800.0)
    rig.store.pause(PauseReason.BREAKER, actor="worker", why="PostgreSQL")
    # Then the floor holds while the breaker is open
    assert rate(rig) == 100.0
    hold(rig, 40.0)
    assert rate(rig) == 40.0
    assert rate_after_override(rig.store.state()) == 100.0
    # And afterwards the override does, while its time is not up
    rig.store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="it answers")
    assert rate(rig) == 40.0


def test_an_override_that_ended_while_the_breaker_is_open_leaves_the_floor(rig: ControlRig) -> None:
    publish(rig)
    rig.store.pause(PauseReason.BREAKER, actor="worker", why="PostgreSQL")

    def held(seconds: float) -> None:
        hold(rig, 40.0, seconds=seconds)
        assert rate(rig) == 40.0

    while_it_lasts(held, 0.15)
    eventually(lambda: rig.store.state().override is None)
    assert rate(rig) == 100.0
    assert rig.bucket.take(needed=1, wanted=1, process="p").rate == 100.0


def test_an_override_before_anything_was_published(rig: ControlRig) -> None:
    hold(rig, 300.0)
    publish(rig)
    assert rate(rig) == 300.0


def test_an_override_whose_time_is_up_already_changes_nothing(rig: ControlRig) -> None:
    publish(rig)
    rig.store.set_override(300.0, until=rig.store.state().time - 1, actor="ann@host", why="late")
    assert rig.store.state().override is None
    assert rate(rig) == 1000.0


def test_bands_are_read_back_and_cleared(rig: ControlRig) -> None:
    rig.store.set_bands(BANDS)
    assert rig.store.state().bands == BANDS
    changed = replace(BANDS, lag_critical=2000)
    rig.store.set_bands(changed)
    assert rig.store.state().bands == changed
    assert rig.store.clear_bands(actor="bob@host", why="done")
    assert rig.store.state().bands is None
    events = rig.events.last(3)
    assert [event.actor for event in events] == ["ann@host", "ann@host", "bob@host"]
    assert events[0].data["lag_critical"] == "1000"


def test_a_flush_loses_both_and_restoring_brings_them_back(rig: ControlRig) -> None:
    # Given both, and a flush
    publish(rig)
    override = hold(rig, 300.0)
    rig.store.set_bands(BANDS)
    rig.flush()
    assert (rig.store.state().override, rig.store.state().bands) == (None, None)
    # When they are restored from elsewhere
    assert rig.store.restore([], actor="controller", override=override, bands=BANDS)
    # Then they hold as before, and it was said
    assert (rig.store.state().override, rig.store.state().bands) == (override, BANDS)
    publish(rig)
    assert rate(rig) == 300.0
    assert rig.events.last(2)[0].data["reasons"] == "override bands"


def test_restoring_does_not_bring_back_what_has_ended_or_was_set_anew(rig: ControlRig) -> None:
    # Given an override that has ended meanwhile, and bands that somebody set after the flush
    rig.flush()
    now = SystemClock().now()
    rig.store.set_bands(BANDS)
    old = Override(300.0, rig.store.state().time - 1, "ann@host", "an import", now - 60)
    rig.store.restore([], actor="controller", override=old, bands=replace(BANDS, rate_max=1.0))
    # Then they stay as they are
    assert (rig.store.state().override, rig.store.state().bands) == (None, BANDS)


def test_how_far_the_log_is_consumed_is_published_with_the_rate(rig: ControlRig) -> None:
    known = Consumption({0: 5, 11: 7}, 123_456_789_012, 33.25, {11: 31.5}, {3: 9})
    publish(rig, consumption=known)
    state = rig.store.state()
    assert state.rate is not None
    assert state.rate.consumption == known
    publish(rig)
    state = rig.store.state()
    assert state.rate is not None
    assert state.rate.consumption is None


def test_after_a_flush_an_override_below_the_floor_stays_what_it_was(rig: ControlRig) -> None:
    publish(rig)
    hold(rig, 10.0)
    assert rig.bucket.take(needed=1, wanted=1, process="p").rate == 10.0
    rig.flush()
    assert rig.bucket.take(needed=1, wanted=1, process="p").rate == 10.0
