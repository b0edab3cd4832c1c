"""What the control store promises while its server's wall clock is stepped, on Redis and in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import redis

from checks.testbed.clocks import SteppableClock, SteppedSystemClock
from checks.testbed.waiting import BUSY_SECONDS, while_it_lasts
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.memory import MemoryServer
from pipeline.control_store.memory_history import MemoryHistory
from pipeline.control_store.redis_history import RedisHistory
from pipeline.follower import ControlFollower, TroubleReporter
from pipeline.log.memory import MemoryLog
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.names import (
    KEY_LOG_ENDS,
    KEY_TROUBLES,
    LEASE_PROBE,
    AlarmCode,
    BreakerState,
    ControlEventKind,
    Mode,
    PauseReason,
)
from pipeline.ports.control import Trouble
from pipeline.ports.history import History
from pipeline.ports.log import LOST_SHOWN_SECONDS
from pipeline.status import StatusContext, read_status
from stack.servers import Server
from support.control import ControlRig, control_settings, eventually, memory_rig, redis_rig
from support.event_logs import ScriptedLowestOffsets, recovered

HOUR = 3600.0


@dataclass
class Stepped:
    """A control store, and its server's wall clock."""

    rig: ControlRig
    step: Callable[[float], None]
    history: History

    def publish(self, rate: float = 1000.0) -> None:
        self.rig.store.publish_rate(
            base_rate=rate, floor_rate=100.0, mode=Mode.NORMAL, lag=0,
            lag_known_at=self.rig.store.state().time, actor="controller",
        )  # fmt: skip

    def rate(self) -> float:
        """What the bucket fills at."""
        return self.rig.bucket.take(needed=1, wanted=1, process="p").rate

    def hold(self, rate: float, seconds: float) -> None:
        until = self.rig.store.state().time + seconds
        self.rig.store.set_override(rate, until=until, actor="ann@host", why="an import")


@pytest.fixture(params=["memory", "redis"])
def stepped(request: pytest.FixtureRequest) -> Stepped:
    return _stepped(request, regulate_seconds=0.2, rate_hold_periods=2)


@pytest.fixture(params=["memory", "redis"])
def slowly_stepped(request: pytest.FixtureRequest) -> Stepped:
    """The same with a rate that holds for long, and a bucket that fills in 50 s."""
    return _stepped(request, burst_seconds=50.0)


def _stepped(request: pytest.FixtureRequest, **limits: Any) -> Stepped:
    if request.param == "memory":
        clock = SteppedSystemClock()
        memory = MemoryServer(clock)
        rig = memory_rig(control_settings("redis://nowhere", **limits), memory)
        return Stepped(rig, clock.step, MemoryHistory(memory))
    server: Server = request.getfixturevalue("clocked_redis")
    wall_clock: SteppableClock = request.getfixturevalue("wall_clock")
    rig = redis_rig(control_settings(server.url, **limits))
    return Stepped(rig, wall_clock.step, RedisHistory(rig.settings))


both_ways = pytest.mark.parametrize("seconds", [-HOUR, HOUR])


# --- Leases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-HOUR, -0.2])
def test_a_lease_lasts_no_longer_than_twice_its_time_where_the_clock_is_set_back(
    stepped: Stepped, seconds: float
) -> None:
    assert stepped.rig.leases.take("duty", seconds=0.4) is not None
    stepped.step(seconds)
    assert eventually(lambda: stepped.rig.leases.take("duty", seconds=60.0) is not None) < 0.8


def test_a_prober_that_died_before_the_step_does_not_leave_the_breaker_half_open(stepped: Stepped) -> None:
    stepped.rig.store.pause(PauseReason.BREAKER, actor="worker", why="PostgreSQL")

    def probing(seconds: float) -> None:
        stepped.rig.leases.take(LEASE_PROBE, seconds=seconds)
        assert stepped.rig.store.state().breaker is BreakerState.HALF_OPEN

    seconds = while_it_lasts(probing, 1.5)
    stepped.step(-HOUR)
    assert eventually(lambda: stepped.rig.store.state().breaker is BreakerState.OPEN) < 2 * seconds


# --- An override ------------------------------------------------------------------------------------


@both_ways
def test_an_override_holds_for_its_time_whatever_the_clock_does(slowly_stepped: Stepped, seconds: float) -> None:
    stepped = slowly_stepped

    def holds(lasts: float) -> None:
        # Given an override, and ingest that asks the bucket
        stepped.publish()
        stepped.hold(300.0, lasts)
        assert stepped.rate() == 300.0
        # When the clock is stepped
        stepped.step(seconds)
        # Then it holds all the same, for everybody who looks, and ends at a time of the clock as it is now
        assert stepped.rate() == 300.0
        stepped.publish()
        state = stepped.rig.store.state()
        assert state.override is not None
        assert state.rate is not None
        assert state.rate.rate == 300.0
        assert 0.0 < state.override.until - state.time <= lasts

    lasts = while_it_lasts(holds, 2.0)
    # And no longer
    assert eventually(lambda: stepped.rate() > 0 and stepped.rig.store.state().override is None) < lasts + 1.5
    assert stepped.rate() != 300.0


@both_ways
def test_whoever_only_reads_sees_the_override_too(stepped: Stepped, seconds: float) -> None:
    stepped.publish()
    stepped.hold(300.0, 60.0)
    stepped.rig.store.state()
    stepped.step(seconds)
    state = stepped.rig.store.state()
    assert state.override is not None
    assert 50.0 < state.override.until - state.time <= 60.0
    assert state.rate is not None
    assert state.rate.rate == 300.0


# --- The bucket ---------------------------------------------------------------------------------------


@both_ways
def test_a_rate_holds_while_the_controller_speaks(slowly_stepped: Stepped, seconds: float) -> None:
    stepped = slowly_stepped
    stepped.publish()
    assert stepped.rate() == 1000.0
    stepped.step(seconds)
    assert stepped.rate() == 1000.0
    stepped.publish()
    assert stepped.rate() == 1000.0


def _gives_what_is_published(stepped: Stepped) -> bool:
    stepped.publish()
    return stepped.rate() == 1000.0


@both_ways
def test_a_silent_controllers_rate_decays_in_time(stepped: Stepped, seconds: float) -> None:
    eventually(partial(_gives_what_is_published, stepped))
    stepped.step(seconds)
    assert eventually(lambda: stepped.rate() == 100.0) < 2.0  # 0.4 s held, then log2(10) periods


def test_a_clock_set_forward_fills_no_bucket(slowly_stepped: Stepped) -> None:
    stepped = slowly_stepped
    stepped.publish(20.0)
    assert stepped.rig.bucket.take(needed=1, wanted=1000, process="p").granted == 1000
    stepped.step(HOUR)
    assert stepped.rig.bucket.take(needed=1, wanted=1000, process="p").granted < 500


def test_a_process_that_died_before_the_step_is_not_counted_for_ever(
    stepped: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped.publish()
    stepped.rig.bucket.take(needed=1, wanted=1, process="p")
    assert stepped.rig.bucket.take(needed=1, wanted=1, process="q").live_processes == 2
    monkeypatch.setattr("pipeline.control_store.memory_bucket.PROCESS_SECONDS_MAX", 0.3)
    stepped.step(-HOUR)
    assert eventually(lambda: stepped.rig.bucket.take(needed=1, wanted=1, process="q").live_processes == 1) < 1.0


def test_a_tick_that_knows_the_lag_is_never_taken_for_an_old_one(stepped: Stepped) -> None:
    for seconds in (HOUR, -HOUR, 0.5, -0.25, -0.5):
        stepped.publish(500.0)
        stepped.step(seconds)
        stepped.publish(700.0)
        published = stepped.rig.store.state().rate
        assert published is not None
        assert published.rate == 700.0, seconds


# --- Standing still -------------------------------------------------------------------------------


@both_ways
def test_a_step_of_the_clock_is_no_time_without_progress(stepped: Stepped, seconds: float) -> None:
    # Given a partition that stands for a moment
    note = stepped.rig.progress.note
    assert note("log", {0: 7}, forget_seconds=2.0)[0] < 1.0
    # When the clock is stepped, then it stands no longer for it than the time between two looks may count
    stepped.step(seconds)
    assert note("log", {0: 7}, forget_seconds=2.0)[0] <= 1.0
    assert note("log", {0: 8}, forget_seconds=2.0)[0] == 0.0
    # And time goes on to count
    eventually(lambda: note("log", {0: 8}, forget_seconds=2.0)[0] > 0.2)


# --- Looking once -------------------------------------------------------------------------------------


def _controllers_age(stepped: Stepped, *, seen_seconds: float | None) -> float | None:
    """The controller's age for somebody who looks once; an ingest process has just seen it as so old."""
    rig = stepped.rig
    if seen_seconds is not None:
        published = rig.store.state().rate
        assert published is not None
        stepped.history.add({}, {"published": published.published_at, "published_age": seen_seconds})
    parts = StatusContext(rig.settings, SystemClock(), rig.store, rig.events, MemoryLog(partitions=1), stepped.history)
    return read_status(parts).inputs.controller_age


@both_ways
def test_whoever_looks_once_goes_by_what_ingest_has_counted(stepped: Stepped, seconds: float) -> None:
    # Given a controller that has published, and a clock that was stepped since
    stepped.publish()
    stepped.step(seconds)
    # Then its age is what ingest has counted: it speaks, or it is silent
    for seen_seconds in (3.0, 100.0):
        age = _controllers_age(stepped, seen_seconds=seen_seconds)
        assert age is not None
        assert seen_seconds <= age < seen_seconds + BUSY_SECONDS
    # And a publication that ingest has not seen yet is new
    stepped.publish()
    age = _controllers_age(stepped, seen_seconds=None)
    assert age is not None
    assert age < BUSY_SECONDS


def test_without_ingest_a_publication_in_the_future_is_of_unknown_age(stepped: Stepped) -> None:
    stepped.publish()
    age = _controllers_age(stepped, seen_seconds=None)
    assert age is not None
    assert age < BUSY_SECONDS
    stepped.step(-HOUR)
    assert _controllers_age(stepped, seen_seconds=None) is None


# --- The history ----------------------------------------------------------------------------------------


@both_ways
def test_the_entry_of_a_second_is_written_once_whatever_the_clock_does(stepped: Stepped, seconds: float) -> None:
    def write(name: str) -> bool:
        added, _ = stepped.history.add_and_read({}, {"by": name}, after="", entries_max=1, age_seconds_min=60.0)
        return added

    # Given two processes, of which one has written the entry of this second
    assert [write("one"), write("two")] == [True, False]
    before = stepped.rig.store.state().time
    # When the clock is stepped, then the next entry is written once
    stepped.step(seconds)
    assert [write("two"), write("one"), write("two")] == [True, False, False]
    # And has the time of the clock as it is now
    newest = stepped.history.since("", entries_max=10)[-1]
    assert newest.sample == {"by": "two"}
    assert -0.001 <= newest.at - before - seconds < BUSY_SECONDS  # its time is in whole milliseconds


# --- A loss of the event log ------------------------------------------------------------------------------


@both_ways
def test_a_loss_is_shown_for_its_time_whatever_the_logs_clock_does(
    clocked_redis: Server, wall_clock: SteppableClock, seconds: float
) -> None:
    # Given a log that lost three records when its incarnation began
    clock = ManualClock()
    settings = control_settings(clocked_redis.url, event_log_url=clocked_redis.url)
    log = RedisStreamsLog(settings, ScriptedLowestOffsets(), clock)
    recovered(lambda: log.append([(0, b"x")]))
    with redis.Redis.from_url(clocked_redis.url) as client:
        found_at = client.time()[0]
        client.hset(f"{settings.key_prefix}{KEY_LOG_ENDS}", mapping={"l0": 3, "lost_at": found_at})
    assert [position.lost for position in log.positions()] == [3, 0, 0, 0]
    # When the server's clock is stepped, then the loss is still shown
    wall_clock.step(seconds)
    assert [position.lost for position in log.positions()] == [3, 0, 0, 0]
    clock.advance(LOST_SHOWN_SECONDS - 10)
    assert [position.lost for position in log.positions()] == [3, 0, 0, 0]
    # And no longer than without a step
    clock.advance(20)
    assert [position.lost for position in log.positions()] == [0, 0, 0, 0]
    log.close()


# --- Reports of processes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-HOUR, 16.0])
def test_the_report_of_a_process_that_ended_is_forgotten_while_others_report(stepped: Stepped, seconds: float) -> None:
    # Given two processes of which one reports once, and ends
    trouble = [Trouble(AlarmCode.LOOP_FAILS, "it fails")]
    stepped.rig.troubles.report("ended", trouble)
    stepped.rig.troubles.report("lives", trouble)
    assert stepped.rig.troubles.reported().keys() == {"ended", "lives"}
    # When the other one goes on to report, for longer than a report is kept or by a clock that is set back
    for _ in range(2):
        stepped.step(seconds)
        stepped.rig.troubles.report("lives", trouble)
    # Then only that one is known
    assert stepped.rig.troubles.reported() == {"lives": trouble}


def test_the_report_of_an_older_version_is_forgotten_too(clocked_redis: Server, wall_clock: SteppableClock) -> None:
    # Given a report without a time, as a process of an older version left it
    rig = redis_rig(control_settings(clocked_redis.url))
    trouble = [Trouble(AlarmCode.LOOP_FAILS, "it fails")]
    with redis.Redis.from_url(rig.settings.redis_url) as client:
        client.hset(rig.settings.key_prefix + KEY_TROUBLES, "ended", '["it fails"]')
    # When another process reports for longer than a report is kept
    rig.troubles.report("lives", trouble)
    assert rig.troubles.reported().keys() == {"ended", "lives"}
    for _ in range(2):
        wall_clock.step(16.0)
        rig.troubles.report("lives", trouble)
    # Then only that one is known
    assert rig.troubles.reported() == {"lives": trouble}


# --- Clocks that differ -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "words"), [(-HOUR, "ahead of"), (3.0, "behind")])
def test_a_process_hears_that_its_clock_differs_and_says_so_until_it_agrees(
    stepped: Stepped, seconds: float, words: str
) -> None:
    rig = stepped.rig

    def codes_and_words() -> list[tuple[str, bool]]:
        rig.events.record(ControlEventKind.RATE_CHANGED, actor="controller", why="lag 0", data={})  # ends a wait
        found = rig.troubles.reported().get("batches@host", [])
        return [(trouble.code, words in trouble.what) for trouble in found]

    # Given a process that follows the control state by a clock that is right
    reporter = TroubleReporter(rig.troubles, "batches@host", SystemClock(), difference_seconds_max=1.0)
    follower = ControlFollower(rig.store, SystemClock(), lambda _state: None, reporter=reporter)
    follower.start()
    eventually(lambda: follower.newest is not None)
    eventually(lambda: codes_and_words() == [])
    # When the store's clock is stepped, then it is reported, and no more once it is right again
    stepped.step(seconds)
    eventually(lambda: codes_and_words() == [(AlarmCode.CLOCKS_DIFFER, True)])
    stepped.step(-seconds)
    eventually(lambda: codes_and_words() == [])
    follower.stop(seconds_max=0.0)
