"""The wall clock of a whole running system is stepped: ingest, workers and Beat. Its servers' clocks stay right."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from checks.soak.rig import clock_environ
from checks.testbed.clocks import SteppableClock
from checks.testbed.processes import System
from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.health.snapshot import silent_seconds
from pipeline.log.memory import MemoryLog
from pipeline.names import AlarmCode
from pipeline.settings import Settings
from pipeline.status import StatusContext, read_status
from stack.servers import free_port
from support.traffic import Traffic, assert_kept_promises, stored_ids

HOUR = 3600.0
# A busy machine; whoever waits for a clock that was set back waits for an hour.
STANDING_SECONDS_MAX = 60.0
CRITICAL_SECONDS_MAX = 3.0
LOOK_SECONDS = 0.1


@dataclass
class Watch:
    """Looks all the time at when the rate was published, and at what health says. Times are monotonic."""

    system: System
    published_at: list[float] = field(default_factory=list)
    critical: list[str] = field(default_factory=list)  # what health said, for each look that found it critical
    codes: set[str] = field(default_factory=set)  # of the newest alarms
    ages: list[float] = field(default_factory=list)  # of the controller, by the status command, where it knows one
    known_at: list[float] = field(default_factory=lambda: [time.monotonic()])  # the start, and when it knew one
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.system.settings
        self._store = wiring.make_control_store(settings)
        events, history = wiring.make_control_events(settings), wiring.make_history(settings)
        self._status = StatusContext(settings, SystemClock(), self._store, events, MemoryLog(partitions=1), history)
        self._version: int | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(WAIT_SECONDS_MAX)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:  # told by the test
                self.errors.append(repr(error))

    def _look(self) -> None:
        rate, now = self._store.state().rate, time.monotonic()
        if rate is not None and rate.version != self._version:
            self._version = rate.version
            self.published_at.append(now)
            self.codes = {alarm.code for alarm in rate.alarms}
        health = self.system.health()
        if health["status"] == "critical" and not self._is_silent():
            self.critical.append(str(health["reasons"]))
        age = read_status(self._status).inputs.controller_age
        if age is not None:  # a busy Redis may not answer one look
            self.ages.append(age)
            self.known_at.append(time.monotonic())

    def _is_silent(self) -> bool:
        """Whether nothing was published for as long as health waits: on a busy machine it is right to be critical."""
        spoke_at = self.published_at[-1] if self.published_at else -math.inf
        return time.monotonic() - spoke_at > silent_seconds(self.system.settings.regulate_seconds)

    def says_that_clocks_differ(self, differ: bool) -> bool:
        """Whether the newest alarms say so, or not where they should not."""
        return (AlarmCode.CLOCKS_DIFFER in self.codes) == differ

    def unknown_seconds(self) -> float:
        """The longest time in which no look found the controller's age."""
        return max(after - before for before, after in pairwise([*self.known_at, time.monotonic()]))

    def stood_seconds(self) -> float:
        """The longest time without a rate."""
        return max(later - earlier for earlier, later in pairwise([*self.published_at, time.monotonic()]))

    def critical_seconds(self) -> float:
        """How long health was critical though rates were published, about."""
        return len(self.critical) * LOOK_SECONDS


class GoesOn:
    """Whether rates are published and events stored since this was made, for longer than a drain runs."""

    def __init__(self, watch: Watch, traffic: Traffic) -> None:
        self._watch, self._traffic, self._settings = watch, traffic, watch.system.settings
        self._versions, self._stored = len(watch.published_at), self._count()
        self._until = time.monotonic() + self._settings.drain_run_seconds_max

    def _count(self) -> int:
        return len(stored_ids(self._settings.database_url, self._traffic.run))

    def is_seen(self) -> bool:
        return (
            time.monotonic() > self._until
            and len(self._watch.published_at) > self._versions + 2
            and self._count() > self._stored + 20
        )


@pytest.fixture
def system(settings: Settings, wall_clock: SteppableClock, tmp_path: Path) -> Iterator[System]:
    running = System(
        replace(settings, ingest_port=free_port(), regulate_seconds=0.5, drain_run_seconds_max=1.0), tmp_path
    )
    for program in running.programs:
        program.environ = clock_environ(wall_clock)
    try:
        yield running.start()
    finally:
        running.stop()


def test_nothing_stands_still_while_the_clock_of_all_processes_is_stepped(
    system: System, wall_clock: SteppableClock
) -> None:
    pids = [program.pid for program in system.programs]
    with Watch(system) as watch, Traffic(system.url, events_per_second=100, events_max=20_000) as traffic:
        system.wait(lambda: len(watch.published_at) > 2 and not watch.codes, "it runs, and its clock is right")
        # When the clock jumps an hour ahead, then to an hour behind, and is right again
        for step in (HOUR, -2 * HOUR, HOUR):
            wall_clock.step(step)
            # Then health says that clocks differ, as long as they do
            differ = wall_clock.seconds != 0
            system.wait(partial(watch.says_that_clocks_differ, differ), f"clocks differ: {differ}")
            # And the rate is published, hints reach the worker, and events are taken and stored, beyond a drain's run
            goes_on = GoesOn(watch, traffic)
            system.wait(goes_on.is_seen, "rates are published and events are stored")
    assert_kept_promises(traffic, system.settings.database_url)
    assert watch.stood_seconds() < STANDING_SECONDS_MAX
    assert watch.critical_seconds() < CRITICAL_SECONDS_MAX, watch.critical
    assert max(watch.ages, default=math.inf) < STANDING_SECONDS_MAX
    assert watch.unknown_seconds() < STANDING_SECONDS_MAX
    assert watch.errors == []
    assert [program.pid for program in system.programs] == pids
