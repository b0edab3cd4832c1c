"""The contract of ControlEvents, on Redis and in memory."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis

from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX, least_seconds, wait_until
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.common import FOLD_SECONDS
from pipeline.control_store.memory import MemoryServer
from pipeline.control_store.redis import RedisControlStore
from pipeline.names import LEASE_PROBE, ControlEventKind, Mode, PauseReason
from pipeline.ports.control import Bands, ControlEvents, OperatorLimit
from pipeline.ports.rate import Explanation, PolicyRecord
from stack.servers import Server
from support.control import ControlRig, control_settings, memory_rig, redis_rig


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere", control_events_max=20))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url, control_events_max=20))


def record(events: ControlEvents, why: str) -> None:
    """Something that a person does, which is never folded."""
    events.record(ControlEventKind.DEAD_LETTERS_REPLAYED, actor="controller", why=why, data={"limit": "3"})


def end_drainer(events: ControlEvents, partition: int, why: str = "it stood") -> None:
    """Something that the system does again and again."""
    events.record(ControlEventKind.DRAINER_TERMINATED, actor="controller", why=why, data={"partition": str(partition)})


def test_events_are_read_back_oldest_first(rig: ControlRig) -> None:
    before = SystemClock().now()
    record(rig.events, "first")
    record(rig.events, "sécond")
    events = rig.events.last(10)
    assert [event.why for event in events] == ["first", "sécond"]
    assert events[0].id < events[1].id
    assert (events[0].kind, events[0].actor, events[0].data) == (
        ControlEventKind.DEAD_LETTERS_REPLAYED,
        "controller",
        {"limit": "3"},
    )
    assert (events[0].count, events[0].first_at) == (1, None)
    assert before - 1.0 <= events[0].at <= SystemClock().now() + 1.0
    assert [event.why for event in rig.events.last(1)] == ["sécond"]


def test_a_system_without_events_has_none(rig: ControlRig) -> None:
    assert rig.events.last(10) == []


def test_what_somebody_writes_is_one_line_without_control_characters(rig: ControlRig) -> None:
    # Given a reason and a name that would forge lines in a terminal
    rig.store.restore([], actor="controller")
    rig.store.pause(PauseReason.OPERATOR, actor="ann\x1b[2J@desk\n", why="all is\r\n  well\x9b1m\u2028\u202e")
    # Then they are kept without what does it
    event = rig.events.last(1)[0]
    assert (event.actor, event.why) == (r"ann\x1b[2J@desk", r"all is well\x9b1m\u2028\u202e")
    [pause] = rig.store.state().pauses or ()
    assert (pause.actor, pause.why) == (event.actor, event.why)


def test_only_the_latest_are_kept(rig: ControlRig) -> None:
    for number in range(50):
        record(rig.events, str(number))
    assert [event.why for event in rig.events.last(1000)] == [str(number) for number in range(30, 50)]


def test_what_repeats_is_one_event_with_a_count(rig: ControlRig) -> None:
    # Given something that a person did, before four partitions stand still for long
    record(rig.events, "ann's")
    position = ""
    for number in range(17):
        for partition in range(4):
            end_drainer(rig.events, partition, f"stood for {number} s")
            position = rig.events.wait(position, wait_seconds=0.01)
    # Then the rest is not pushed out, and each partition is told once, as it was last
    events = rig.events.last(100)
    assert [event.why for event in events] == ["ann's", *["stood for 16 s"] * 4]
    assert [event.data["partition"] for event in events[1:]] == ["0", "1", "2", "3"]
    assert [event.count for event in events[1:]] == [17] * 4
    assert all(event.first_at is not None and event.first_at <= event.at for event in events[1:])
    # And whoever waits is woken by each of them
    assert position == events[-1].id


def test_a_breaker_that_flaps_is_one_round_with_counts(rig: ControlRig) -> None:
    # Given a published rate, and a breaker that opens and closes again and again
    rig.store.restore([], actor="controller")
    rig.store.publish_rate(
        base_rate=10.0, floor_rate=1.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="controller"
    )
    for number in range(5):
        rig.store.pause(PauseReason.BREAKER, actor=f"drain-{number}", why=f"failure {number}")
        rig.store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="well")
    # Then its six steps are told once
    told = [(event.kind, event.count) for event in rig.events.last(100)][2:]
    assert told == [
        (ControlEventKind.BREAKER_OPENED, 5),
        (ControlEventKind.PAUSED, 5),
        (ControlEventKind.RATE_CHANGED, 5),
        (ControlEventKind.BREAKER_CLOSED, 5),
        (ControlEventKind.RESUMED, 5),
        (ControlEventKind.RATE_CHANGED, 5),
    ]


def moving(rig: ControlRig, *rates: float, mode: Mode = Mode.NORMAL) -> None:
    """Publish these rates, by a policy whose rate moves all the time."""
    record = PolicyRecord(Explanation("toy", "", "", "", 1e5, "", event_ratio=0.1))
    for rate in rates:
        rig.store.publish_rate(
            base_rate=rate, floor_rate=1.0, mode=mode, lag=0, lag_known_at=None, actor="controller", policy=record
        )


def rate_events(rig: ControlRig) -> list[tuple[str, str, int]]:
    """Previous rate, rate and count of each event about the rate."""
    events = [event for event in rig.events.last(100) if event.kind is ControlEventKind.RATE_CHANGED]
    return [(event.data["previous"], event.data["rate"], event.count) for event in events]


def test_a_rate_that_moves_all_the_time_does_not_push_out_the_other_events(rig: ControlRig) -> None:
    # Given something that a person did, and a policy whose rate moves by more than a little at each tick
    record(rig.events, "ann's")
    moving(rig, *(500.0 + 100.0 * (number % 3) for number in range(30)))
    # Then it is one event, from the first rate to the newest
    assert rate_events(rig) == [("", "700.0", 30)]
    assert rig.events.last(100)[0].why == "ann's"


def test_rates_that_move_are_one_event_for_each_mode_and_cause(rig: ControlRig) -> None:
    rig.store.restore([], actor="controller")
    moving(rig, 500.0, 700.0)
    # When the mode changes, or the breaker opens and closes
    moving(rig, 300.0, 200.0, mode=Mode.CRITICAL)
    for number in range(2):
        rig.store.pause(PauseReason.BREAKER, actor="drain", why="down")
        moving(rig, 400.0 + 100.0 * number, mode=Mode.CRITICAL)
        rig.store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="well")
    # Then each is told once, with its first and its newest rate
    assert rate_events(rig) == [("", "700.0", 2), ("200.0", "1.0", 2), ("700.0", "500.0", 4)]
    # And what an operator sets stays one by one
    for rate in (50.0, 60.0):
        rig.store.set_override(rate, until=rig.store.state().time + 60.0, actor="ann", why="wait")
    assert [found[1:] for found in rate_events(rig)[-2:]] == [("50.0", 1), ("60.0", 1)]


def test_what_people_do_stays_one_by_one(rig: ControlRig) -> None:
    # Given two who pause and resume, and a rate that goes on changing
    rig.store.restore([], actor="controller")
    for who in ("ann", "bob"):
        rig.store.pause(PauseReason.OPERATOR, actor=who, why="wait")
        rig.store.resume(PauseReason.OPERATOR, generation=None, actor=who, why="go")
    for rate in (10.0, 20.0, 30.0):
        rig.store.publish_rate(
            base_rate=rate, floor_rate=1.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="controller"
        )
    # Then each is told
    events = rig.events.last(100)
    assert len(events) == 8
    assert {event.count for event in events} == {1}


def test_an_event_of_long_ago_is_not_repeated() -> None:
    # Given a drainer that was ended, a while before it is ended again
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    end_drainer(rig.events, 0)
    clock.advance(FOLD_SECONDS + 1)
    end_drainer(rig.events, 0)
    # Then that is another event
    assert [event.count for event in rig.events.last(10)] == [1, 1]


def test_waiting_in_vain_takes_the_time_given_and_keeps_the_position(rig: ControlRig) -> None:
    record(rig.events, "before")
    started = time.monotonic()
    position = rig.events.wait("", wait_seconds=0.2)
    assert 0.15 < time.monotonic() - started < 2.0 + BUSY_SECONDS
    assert position == rig.events.last(1)[0].id
    assert rig.events.wait(position, wait_seconds=0.01) == position


def test_what_happened_between_two_waits_is_not_missed(rig: ControlRig) -> None:
    position = rig.events.wait("", wait_seconds=0.01)
    record(rig.events, "one")
    record(rig.events, "two")
    started = time.monotonic()
    position = rig.events.wait(position, wait_seconds=30.0)
    assert time.monotonic() - started < BUSY_SECONDS
    assert position == rig.events.last(1)[0].id


def test_a_wait_in_vain_ends_with_the_state(rig: ControlRig) -> None:
    rig.store.restore([], actor="controller")
    rig.store.pause(PauseReason.OPERATOR, actor="ann", why="a disk")
    position, none = rig.store.state_after("", wait_seconds=30.0)
    assert (position, none) == (rig.events.last(1)[0].id, None)
    assert rig.store.pause_state_after("", wait_seconds=30.0) == (position, None)
    # When there is no event, then the state is that after the wait
    before, _ = rig.store.state(), rig.store.pause_state()  # now the server has the scripts
    newest, state = rig.store.state_after(position, wait_seconds=0.2)
    assert newest == position
    assert state is not None
    assert state.time - before.time > 0.15
    assert replace(state, time=0.0) == replace(before, time=0.0)
    newest, pauses = rig.store.pause_state_after(position, wait_seconds=0.01)
    assert newest == position
    assert pauses is not None
    assert (pauses.pauses, pauses.breaker, pauses.generation) == (state.pauses, state.breaker, state.generation)
    # When there was one, then it returns at once, and the caller reads the state
    record(rig.events, "now")
    started = time.monotonic()
    after = rig.events.last(1)[0].id
    assert rig.store.state_after(position, wait_seconds=30.0) == (after, None)
    assert rig.store.pause_state_after(position, wait_seconds=30.0) == (after, None)
    assert time.monotonic() - started < BUSY_SECONDS


def test_the_wait_and_the_state_are_one_round_trip(own_control_redis: Server) -> None:
    # Given the store of a follower, on a server that nobody else uses or leaves
    store = RedisControlStore(control_settings(own_control_redis.url))
    position, _ = store.state_after("", wait_seconds=0.01)
    store.state_after(position, wait_seconds=0.01)  # connects
    with redis.Redis.from_url(own_control_redis.url, decode_responses=True) as client:

        def reads() -> int:
            """Requests that the server has read; more than one at a time are one."""
            return int(client.info("stats")["total_reads_processed"])

        store.state()  # now the server has the script
        per_look = -(reads() - reads())
        before = reads()
        for _ in range(5):
            assert store.state_after(position, wait_seconds=0.01)[1] is not None
        assert reads() - before == 5 + per_look
        # When the server has lost its scripts, then the caller reads the state by itself
        client.script_flush()
    assert store.state_after(position, wait_seconds=0.01) == (position, None)
    assert store.state().time > 0


def test_a_state_that_has_not_changed_is_read_once_from_its_text(control_redis: Server) -> None:
    # Given two reads of a state
    rig = redis_rig(control_settings(control_redis.url))
    publish = partial(rig.store.publish_rate, floor_rate=1.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="test")
    rig.store.restore([], actor="test")
    publish(base_rate=500.0)
    first, second = rig.store.state(), rig.store.state()
    # Then only the time is new
    assert second.rate is first.rate
    assert second.accounts is first.accounts
    assert second.time > first.time
    assert replace(second, time=first.time) == first
    # And whatever changes is read
    publish(base_rate=400.0)
    changed = rig.store.state()
    assert changed.rate is not None
    assert changed.rate.rate == 400.0
    rig.store.pause(PauseReason.OPERATOR, actor="ann", why="a disk")
    [pause] = rig.store.state().pauses or ()
    assert pause.why == "a disk"
    # Until an override ends, its times follow the store's clock, so that each read counts
    rig.store.set_override(9.0, until=changed.time + 3600, actor="ann", why="a test")
    assert rig.store.state().rate is not rig.store.state().rate
    rig.flush()
    assert rig.store.state().rate is None


def test_each_change_of_the_state_is_seen_by_a_process_that_has_read_it_before(control_redis: Server) -> None:
    # Given a process that reads the state before and after each change, and one that reads it for the first time
    settings = control_settings(control_redis.url)
    rig, tokens = redis_rig(settings), list[str]()
    store = rig.store
    by: Any = {"actor": "ann", "why": "w"}
    store.restore([], actor="test")
    publish = partial(store.publish_rate, floor_rate=1.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="test")
    publish(base_rate=10.0)
    changes: dict[str, Callable[[], object]] = {
        "rate": lambda: publish(base_rate=20.0),
        "breaker opens": lambda: store.pause(PauseReason.BREAKER, **by),
        "probe begins": lambda: tokens.append(rig.leases.take(LEASE_PROBE, seconds=60.0) or ""),
        "probe ends": lambda: rig.leases.give_back(LEASE_PROBE, tokens[-1]),
        "breaker closes": lambda: store.resume(PauseReason.BREAKER, generation=None, **by),
        "partition pauses": lambda: store.pause(PauseReason.POISON, partition=1, **by),
        "partition resumes": lambda: store.resume(PauseReason.POISON, partition=1, generation=None, **by),
        "bands": lambda: store.set_bands(Bands(9.0, 1.0, 10, 20, "ann", "w", 0.0)),
        "bands end": lambda: store.clear_bands(**by),
        "account": lambda: store.restore_account_limits([OperatorLimit("a", 5.0, None, "ann", "w", 0.0)], actor="test"),
        "account ends": lambda: store.clear_account_limit("a", **by),
        "bucket": lambda: [rig.bucket.take(needed=1, wanted=1000, process="b") for _ in range(2)],
        "keys": lambda: rig.keys.replace([], "v", instead_of=None),
        "override": lambda: store.set_override(3.0, until=store.state().time + 3600, **by),
        "override ends": lambda: store.clear_override(**by),
        "flush": rig.flush,
    }
    for name, change in changes.items():
        before = store.state()
        assert replace(store.state(), time=0.0) == replace(before, time=0.0), name
        change()
        # Then both see the same, which is not what was before
        after, fresh = store.state(), RedisControlStore(settings).state()
        assert replace(after, time=fresh.time) == fresh, name
        assert replace(after, time=before.time) != before, name


@pytest.mark.parametrize("kind", ["publication", "event"])
def test_a_waiter_wakes_within_a_tenth_of_a_second(rig: ControlRig, kind: str) -> None:
    def publish() -> None:
        rig.store.publish_rate(
            base_rate=1.0, floor_rate=1.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="controller"
        )

    act: Callable[[], None] = publish if kind == "publication" else lambda: record(rig.events, "now")

    def seconds_to_wake() -> float:
        # Given somebody who waits
        position = rig.events.wait("", wait_seconds=0.01)
        waiting = threading.Event()

        def wait() -> float:
            waiting.set()
            rig.events.wait(position, wait_seconds=30.0)
            return time.monotonic()

        with ThreadPoolExecutor(1) as executor:
            waiter = executor.submit(wait)
            waiting.wait()
            # When something happens
            happened_at = time.monotonic()
            act()
            return waiter.result(WAIT_SECONDS_MAX) - happened_at

    took = least_seconds(seconds_to_wake, below=0.1)
    # Where a blocked read of Redis alone takes milliseconds instead of a third of one, nobody wakes in time
    assert took < 0.1 or took < 50 * min(_seconds_to_wake_a_reader(rig) for _ in range(5))


def _seconds_to_wake_a_reader(rig: ControlRig) -> float:
    """How long a blocked read of a list takes to return what is written, without any code of ours."""
    key = f"{rig.settings.key_prefix}yardstick"
    with (
        redis.Redis.from_url(rig.settings.redis_url) as reader,
        redis.Redis.from_url(rig.settings.redis_url) as writer,
        ThreadPoolExecutor(1) as executor,
    ):
        writer.ping()
        reading = executor.submit(lambda: (reader.blpop([key], WAIT_SECONDS_MAX), time.monotonic()))
        wait_until(lambda: writer.info("clients")["blocked_clients"] > 0, "it waits")
        written_at = time.monotonic()
        writer.rpush(key, "now")
        return reading.result(WAIT_SECONDS_MAX)[1] - written_at


def test_a_waiter_goes_on_over_a_flush(rig: ControlRig) -> None:
    record(rig.events, "before")
    position = rig.events.wait("", wait_seconds=0.01)
    rig.flush()
    record(rig.events, "after")
    assert rig.events.wait(position, wait_seconds=5.0) == rig.events.last(1)[0].id


def test_systems_on_one_server_do_not_meet(rig: ControlRig) -> None:
    record(rig.events, "mine")
    if "nowhere" in rig.settings.redis_url:
        return  # a memory server is one system's
    other = redis_rig(replace(rig.settings, key_prefix=rig.settings.key_prefix + "other:"))
    assert other.events.last(10) == []
