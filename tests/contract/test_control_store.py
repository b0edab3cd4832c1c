"""The contract of ControlStore, on Redis and in memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.names import LEASE_PROBE, BreakerState, ControlEventKind, Mode, PauseReason
from pipeline.ports.control import OperatorPause, PublishedRate
from pipeline.ports.rate import Explanation, Figure, PolicyRecord, Shadow, Threshold
from support.control import ControlRig, control_settings, eventually, memory_rig, redis_rig

BREAKER, OPERATOR, POISON = PauseReason.BREAKER, PauseReason.OPERATOR, PauseReason.POISON


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere"))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url))


Publish = Callable[..., PublishedRate]


@pytest.fixture
def publish(rig: ControlRig) -> Publish:
    def publish(
        base_rate: float = 1000.0, *, mode: Mode = Mode.NORMAL, lag: int | None = 0, known_at: float | None = None,
        policy: PolicyRecord | None = None,
    ) -> PublishedRate:  # fmt: skip
        return rig.store.publish_rate(
            base_rate=base_rate, floor_rate=100.0, mode=mode, lag=lag, lag_known_at=known_at, actor="controller",
            policy=policy,
        )  # fmt: skip

    return publish


def kinds(rig: ControlRig) -> list[ControlEventKind]:
    return [event.kind for event in rig.events.last(100)]


# --- A fresh system -----------------------------------------------------------------------------


def test_a_fresh_store_knows_nothing_and_says_so(rig: ControlRig) -> None:
    state = rig.store.state()
    assert (state.rate, state.pauses, state.breaker) == (None, None, BreakerState.UNKNOWN)
    assert (state.generation, state.floor_rate) == (0, 0.0)


def test_restoring_nothing_makes_the_reasons_known(rig: ControlRig) -> None:
    # Given a fresh store / When it is restored twice
    first, second = rig.store.restore([], actor="controller"), rig.store.restore([], actor="controller")
    # Then the first did it
    assert (first, second) == (True, False)
    state = rig.store.state()
    assert (state.pauses, state.breaker, state.generation) == ((), BreakerState.CLOSED, 0)
    assert kinds(rig) == [ControlEventKind.STATE_RESTORED]


def test_the_pauses_alone_are_those_of_the_state(rig: ControlRig) -> None:
    def both() -> list[tuple[object, ...]]:
        return [(one.pauses, one.breaker, one.generation) for one in (rig.store.state(), rig.store.pause_state())]

    assert both() == [(None, BreakerState.UNKNOWN, 0)] * 2
    # Also while a reason is known and the others are not
    rig.store.pause(BREAKER, actor="drain", why="it fails")
    whole, alone = both()
    assert whole == alone
    assert alone[:2] == (None, BreakerState.OPEN)
    # When they are restored, one is for a partition, and a prober is at work
    rig.store.restore([], actor="controller")
    rig.store.pause(POISON, actor="drain", why="bad", partition=3)
    assert rig.leases.take(LEASE_PROBE, seconds=60) is not None
    whole, alone = both()
    assert whole == alone
    assert alone[1] is BreakerState.HALF_OPEN
    before = rig.store.state().time
    assert before <= rig.store.pause_state().time <= rig.store.state().time


# --- Rate -----------------------------------------------------------------------------------------


def test_a_published_rate_is_read_back_as_it_was_given(rig: ControlRig, publish: Publish) -> None:
    at = rig.store.state().time
    published = publish(1000 / 3, mode=Mode.DEGRADED, lag=39_629, known_at=at)
    state = rig.store.state()
    assert state.rate == published
    assert (published.rate, published.base_rate) == (1000 / 3, 1000 / 3)
    assert (published.mode, published.lag, published.lag_known_at) == (Mode.DEGRADED, 39_629, at)
    assert at <= published.published_at <= state.time
    assert state.floor_rate == 100.0


def test_versions_grow_with_each_publication_and_over_a_flush(rig: ControlRig, publish: Publish) -> None:
    one, two = publish(), publish()
    rig.flush()
    eventually(lambda: rig.store.state().time * 1000 > two.version + 1)  # versions count milliseconds
    three = publish()
    assert one.version < two.version < three.version


def test_an_unknown_lag_stays_unknown(rig: ControlRig, publish: Publish) -> None:
    publish(lag=None, mode=Mode.UNKNOWN)
    rate = rig.store.state().rate
    assert rate is not None
    assert (rate.lag, rate.lag_known_at, rate.mode) == (None, None, Mode.UNKNOWN)


POLICY = PolicyRecord(
    Explanation(
        "toy", "a “sentence”", "it is warm", "21.5 °C", 70.0, "the thermometer",
        (Threshold("hot above", 40.0, "°C", Mode.CRITICAL, "heat", is_inclusive=True),),
        (Figure("heat", "heat", 21.5, "°C"), Figure("heat", "heat", 3.0, "°C", 1)),
        {"step": 7, "setBy": None},
    ),
    {"count": 1, "by": {"0": [1, 2.5, True]}},
    ran_dry=4,
    generation=2,
    shadow=Shadow(5.5, Mode.DEGRADED, PolicyRecord(Explanation("other", "", "", "", 1.0, ""), {"mood": "good"})),
)  # fmt: skip


def test_the_record_of_the_policy_is_kept_with_the_rate_until_the_next_publication(
    rig: ControlRig, publish: Publish
) -> None:
    # Given a rate with the record of its policy
    publish(500.0, lag=5, policy=POLICY)
    assert published(rig).policy == POLICY
    assert (rig.events.last(1)[0].data["policy_reason"], rig.events.last(1)[0].why) == ("it is warm", "21.5 °C")
    # When a pause changes the effective rate, then the record stays, and the event gives the policy's reason
    rig.store.pause(PauseReason.BREAKER, actor="drain", why="down")
    assert published(rig).policy == POLICY
    rig.store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="up")
    assert rig.events.last(1)[0].data["policy_reason"] == "it is warm"
    # And a publication without one, of an older version, takes it away
    publish(400.0, lag=5)
    assert published(rig).policy is None
    assert rig.events.last(1)[0].data["policy_reason"] == ""


def test_a_small_change_of_a_rate_is_no_event_if_the_policy_says_so(rig: ControlRig, publish: Publish) -> None:
    # Given a policy whose rate moves a little all the time
    policy = replace(POLICY, explanation=replace(POLICY.explanation, event_ratio=0.1))
    for rate in (1000.0, 1050.0, 1099.0, 1100.0, 1010.0, 990.0):
        publish(rate, policy=policy)
    # Then only what differs enough from the last event is one
    assert [(event.count, float(event.data["rate"])) for event in rig.events.last(10)] == [(3, 990.0)]
    # And another mode is one in any case, as is what a pause does
    publish(1030.0, policy=policy)
    publish(1031.0, mode=Mode.DEGRADED, policy=policy)
    assert rig.events.last(1)[0].data["previous"] == "990.0"  # the rate of the last event
    rig.store.pause(BREAKER, actor="drain", why="down")
    found = [float(event.data["rate"]) for event in rig.events.last(10) if event.kind is ControlEventKind.RATE_CHANGED]
    assert found == [990.0, 1031.0, 100.0]


def published(rig: ControlRig) -> PublishedRate:
    rate = rig.store.state().rate
    assert rate is not None
    return rate


def test_an_event_is_recorded_when_rate_or_mode_changed_and_only_then(rig: ControlRig, publish: Publish) -> None:
    publish(1000.0)
    publish(1000.0, lag=5)
    publish(500.0, mode=Mode.DEGRADED, lag=30_000)
    publish(500.0, mode=Mode.UNKNOWN, lag=None)
    events = rig.events.last(10)
    assert [event.kind for event in events] == [ControlEventKind.RATE_CHANGED] * 3
    assert [(float(event.data["rate"]), event.data["mode"]) for event in events] == [
        (1000.0, "normal"),
        (500.0, "degraded"),
        (500.0, "unknown"),
    ]
    assert (events[1].data["previous"], events[1].data["lag"], events[1].actor) == ("1000.0", "30000", "controller")
    assert events[1].why == "lag 30000"


def test_a_rate_decided_on_an_older_lag_than_the_published_is_ignored(rig: ControlRig, publish: Publish) -> None:
    # Given a controller that was frozen after it had looked at the lag, and another that went on
    frozen_at = rig.store.state().time - 30.0
    newer = publish(100.0, mode=Mode.CRITICAL, lag=90_000, known_at=rig.store.state().time)
    # When the first publishes what it had decided
    answer = publish(1000.0, lag=0, known_at=frozen_at)
    # Then nothing changes
    assert answer == newer == rig.store.state().rate


def test_a_lag_known_in_the_future_does_not_stop_the_controller(rig: ControlRig, publish: Publish) -> None:
    now = rig.store.state().time
    publish(100.0, known_at=now + 3600.0)
    assert publish(1000.0, known_at=now).rate == 1000.0


# --- Pause ----------------------------------------------------------------------------------------


def test_a_reason_holds_from_pause_to_resume(rig: ControlRig) -> None:
    # Given
    rig.store.restore([], actor="controller")
    # When
    generation = rig.store.pause(OPERATOR, actor="ann@desk", why="maintenance")
    # Then
    state = rig.store.state()
    assert state.pauses is not None
    [pause] = state.pauses
    assert (pause.reason, pause.generation, pause.actor, pause.why) == (OPERATOR, generation, "ann@desk", "maintenance")
    assert abs(pause.since - state.time) < 5.0
    assert state.generation == generation
    # And when it is lifted
    assert rig.store.resume(OPERATOR, generation=generation, actor="ann@desk", why="done")
    state = rig.store.state()
    assert state.pauses == ()
    assert state.generation > generation
    assert kinds(rig) == [ControlEventKind.STATE_RESTORED, ControlEventKind.PAUSED, ControlEventKind.RESUMED]
    paused, resumed = rig.events.last(2)
    assert (paused.data["reason"], paused.actor, paused.why) == ("operator", "ann@desk", "maintenance")
    assert resumed.data["generation"] == str(generation)


def test_pausing_again_keeps_the_first(rig: ControlRig) -> None:
    first = rig.store.pause(OPERATOR, actor="ann", why="first")
    assert rig.store.pause(OPERATOR, actor="bob", why="second") == first
    assert kinds(rig) == [ControlEventKind.PAUSED]


def test_each_occurrence_has_a_generation_of_its_own_and_an_older_one_lifts_nothing(rig: ControlRig) -> None:
    rig.store.restore([], actor="controller")
    old = rig.store.pause(POISON, actor="drain", why="first")
    assert rig.store.resume(POISON, generation=old, actor="ann", why="mended")
    new = rig.store.pause(POISON, actor="drain", why="second")
    assert new > old
    assert not rig.store.resume(POISON, generation=old, actor="late", why="late")
    assert rig.store.state().pauses != ()
    assert rig.store.resume(POISON, generation=None, actor="ann", why="whichever")
    assert not rig.store.resume(POISON, generation=None, actor="ann", why="nothing left")


def test_several_reasons_hold_together_oldest_first(rig: ControlRig) -> None:
    rig.store.restore([], actor="controller")
    rig.store.pause(POISON, actor="drain", why="poison")
    rig.store.pause(BREAKER, actor="drain", why="down")
    rig.store.resume(POISON, generation=None, actor="ann", why="mended")
    rig.store.pause(OPERATOR, actor="ann", why="wait")
    state = rig.store.state()
    assert state.pauses is not None
    assert [pause.reason for pause in state.pauses] == [BREAKER, OPERATOR]


def test_lifting_one_of_several_reasons_says_which_are_left(rig: ControlRig) -> None:
    rig.store.restore([], actor="controller")
    for reason in (BREAKER, OPERATOR, PauseReason.POISON):
        rig.store.pause(reason, actor="x", why="y")
    left = []
    for reason in (BREAKER, PauseReason.POISON, OPERATOR):
        rig.store.resume(reason, generation=None, actor="x", why="y")
        left.append(rig.events.last(1)[0].data["left"])
    assert left == ["operator poison", "operator", ""]


def test_texts_of_any_kind_and_length_are_kept_within_bounds(rig: ControlRig) -> None:
    rig.store.restore([], actor="controller")
    rig.store.pause(OPERATOR, actor="b" * 10_000, why="\udcff \u2028 ü \x00 \"'" + "w" * 10_000)
    state = rig.store.state()
    assert state.pauses is not None
    [pause] = state.pauses
    assert len(pause.actor) == 200
    assert pause.why.startswith(r"""? \u2028 ü \x00 "'www""")
    assert len(pause.why) == 1000
    assert rig.events.last(1)[0].why == pause.why


# --- Breaker --------------------------------------------------------------------------------------


def test_the_breaker_drops_the_rate_to_the_floor_and_back_in_the_same_step(rig: ControlRig, publish: Publish) -> None:
    # Given
    rig.store.restore([], actor="controller")
    before = publish(800.0)
    # When the breaker opens
    generation = rig.store.pause(BREAKER, actor="drain-1", why="connection refused")
    # Then
    state = rig.store.state()
    assert state.breaker is BreakerState.OPEN
    assert state.rate is not None
    assert (state.rate.rate, state.rate.base_rate) == (100.0, 800.0)
    assert state.rate.version > before.version
    assert state.rate.published_at == before.published_at  # it was not the controller who spoke
    opened, paused, changed = rig.events.last(3)
    assert [opened.kind, paused.kind, changed.kind] == [
        ControlEventKind.BREAKER_OPENED,
        ControlEventKind.PAUSED,
        ControlEventKind.RATE_CHANGED,
    ]
    # The error is told once: what follows says from what
    assert (opened.actor, opened.why) == ("drain-1", "connection refused")
    assert {(one.actor, one.why) for one in (paused, changed)} == {("drain-1", "the breaker opened")}
    assert (changed.data["rate"], changed.data["previous"], changed.data["decided_by"]) == ("100.0", "800.0", "breaker")
    # When the policy decides anew meanwhile
    during = publish(600.0, lag=20_000)
    assert (during.rate, during.base_rate) == (100.0, 600.0)
    # Then lifting it brings back what was decided last, at once
    assert rig.store.resume(BREAKER, generation=generation, actor="prober", why="well again")
    state = rig.store.state()
    assert state.breaker is BreakerState.CLOSED
    assert state.rate is not None
    assert (state.rate.rate, state.rate.version > during.version) == (600.0, True)
    assert kinds(rig)[-3:] == [
        ControlEventKind.BREAKER_CLOSED,
        ControlEventKind.RESUMED,
        ControlEventKind.RATE_CHANGED,
    ]


def test_other_reasons_leave_the_rate_alone(rig: ControlRig, publish: Publish) -> None:
    before = publish(800.0)
    rig.store.pause(OPERATOR, actor="ann", why="wait")
    assert rig.store.state().rate == before


def test_the_floor_never_raises_the_rate(rig: ControlRig) -> None:
    rig.store.publish_rate(
        base_rate=50.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="controller"
    )
    rig.store.pause(BREAKER, actor="drain", why="down")
    rate = rig.store.state().rate
    assert rate is not None
    assert rate.rate == 50.0


def test_the_breaker_reads_half_open_while_the_prober_has_its_lease(rig: ControlRig) -> None:
    rig.store.restore([], actor="controller")
    token = rig.leases.take(LEASE_PROBE, seconds=60.0)
    assert token is not None
    assert rig.store.state().breaker is BreakerState.CLOSED
    rig.store.pause(BREAKER, actor="drain", why="down")
    assert rig.store.state().breaker is BreakerState.HALF_OPEN
    rig.leases.give_back(LEASE_PROBE, token)
    assert rig.store.state().breaker is BreakerState.OPEN


# --- After a flush --------------------------------------------------------------------------------


def test_after_a_flush_the_reasons_are_unknown_until_restored_and_the_breakers_is_kept(rig: ControlRig) -> None:
    # Given a system with reasons, then a flush
    rig.store.restore([], actor="controller")
    rig.store.pause(OPERATOR, actor="ann", why="wait")
    rig.flush()
    assert rig.store.state().pauses is None
    # When a drain publishes its open breaker before anybody restores
    generation = rig.store.pause(BREAKER, actor="drain", why="down")
    state = rig.store.state()
    assert (state.pauses, state.breaker, state.generation) == (None, BreakerState.OPEN, generation)
    # Then restoring adds what is known elsewhere and keeps it
    asked = [OperatorPause(OPERATOR, "ann", "wait", 1e9), OperatorPause(BREAKER, "old", "old", 1e9)]
    assert rig.store.restore(asked, actor="controller")
    state = rig.store.state()
    assert state.pauses is not None
    assert [(pause.reason, pause.actor, pause.why) for pause in state.pauses] == [
        (BREAKER, "drain", "down"),
        (OPERATOR, "ann", "wait"),
    ]
    # since when it was asked for, not since the flush
    assert state.pauses[1].since == 1e9
    assert rig.events.last(1)[0].kind is ControlEventKind.STATE_RESTORED
    assert rig.events.last(1)[0].data["reasons"] == "operator"


def test_lifting_the_only_reason_of_an_incomplete_set_leaves_it_unknown(rig: ControlRig) -> None:
    rig.store.pause(BREAKER, actor="drain", why="down")
    assert rig.store.resume(BREAKER, generation=None, actor="ann", why="by hand")
    state = rig.store.state()
    assert (state.pauses, state.breaker) == (None, BreakerState.UNKNOWN)


def test_a_rate_published_while_the_breaker_holds_is_the_floor(rig: ControlRig, publish: Publish) -> None:
    rig.store.pause(BREAKER, actor="drain", why="down")
    published = publish(1000.0)
    assert (published.rate, published.base_rate) == (100.0, 1000.0)
