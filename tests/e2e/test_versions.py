"""An old version runs beside the new one on the same servers, as during a rolling upgrade."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from checks.testbed.processes import Program, System, http_status
from checks.testbed.versions import OLD_COMMIT, old_checkout
from pipeline.settings import Settings
from stack.servers import free_port
from support.traffic import Traffic, assert_kept_promises, stored_ids

STORED_EVENTS = 50  # by each client, in each phase


class Versions:
    """The programs of two versions, each with an ingest process of its own."""

    def __init__(self, settings: Settings, folder: Path, old_root: Path) -> None:
        self.settings = settings
        self.old, self.new = (self._system(folder / name) for name in ("old", "new"))
        for program in self.old.programs:
            program.root = old_root
        self.running: list[Program] = []  # those that must run, each as the process that was started
        self._pids: dict[Program, int] = {}

    def _system(self, folder: Path) -> System:
        folder.mkdir()
        return System(replace(self.settings, ingest_port=free_port()), folder)

    def start(self, *programs: Program) -> None:
        """Start programs, and wait until they are at work."""
        for program in programs:
            program.start()
            self._pids[program] = program.pid
        self.running += programs
        for program in programs:
            system = self.old if program in self.old.programs else self.new
            self.wait(self._is_at_work(program, system), f"{program.name} is at work")

    def _is_at_work(self, program: Program, system: System) -> Callable[[], bool]:
        if program is system.ingest:
            return lambda: http_status(f"{system.url}/readyz") == 200
        if program is system.beat:
            return lambda: program.is_running
        return lambda: " ready." in program.log()

    def stop(self, *programs: Program) -> None:
        """Tell programs to end; they do, in order."""
        self.running = [one for one in self.running if one not in programs]
        with ThreadPoolExecutor(len(programs)) as threads:
            statuses = list(threads.map(Program.stop, programs))
        assert statuses == [0] * len(programs)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        self.new.wait(condition, what)

    def assert_goes_on(self, *clients: Traffic) -> None:
        """Events of each client are stored, for longer than a drain runs, and no process ends or pauses."""
        until = time.monotonic() + self.settings.drain_run_seconds_max
        before = {client: self._stored(client) for client in clients}
        self.wait(
            lambda: (
                time.monotonic() > until
                and all(self._stored(one) > count + STORED_EVENTS for one, count in before.items())
            ),
            "events of each client are stored",
        )
        assert [one.name for one in self.running if not one.is_running or one.pid != self._pids[one]] == []

    def _stored(self, client: Traffic) -> int:
        return len(stored_ids(self.settings.database_url, client.run))


@pytest.fixture
def versions(settings: Settings, tmp_path: Path) -> Iterator[Versions]:
    root = old_checkout(tmp_path)
    if root is None:
        pytest.skip(f"the history of this checkout has no commit {OLD_COMMIT}")
    # (the lowest rate is above what clients send: a busy Redis may not answer for a moment)
    changed = replace(settings, regulate_seconds=0.5, drain_run_seconds_max=1.0, rate_min=1000.0)
    found = Versions(changed, tmp_path, root)
    try:
        yield found
    finally:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(Program.stop, [*found.old.programs, *found.new.programs]))


def test_a_rolling_upgrade_loses_and_doubles_nothing_and_nobody_stands_still(versions: Versions) -> None:
    old, new = versions.old, versions.new
    with contextlib.ExitStack() as clients:

        def client(system: System) -> Traffic:
            return clients.enter_context(Traffic(system.url, events_per_second=100, events_max=100_000))

        # Given a system of the old version that is at work
        versions.start(*old.programs)
        of_old = client(old)
        versions.assert_goes_on(of_old)
        # When a new worker comes beside it, then it waits for its schema
        new.batches.start()
        versions.wait(lambda: "this worker waits" in new.batches.log(), "the new worker waits")
        versions.assert_goes_on(of_old)
        # And when the new control loop and ingest come, the schema is brought up to date, and both workers drain
        versions.start(new.control, new.beat, new.ingest)
        of_new = client(new)
        versions.wait(lambda: " ready." in new.batches.log(), "the new worker begins")
        versions.wait(lambda: new.health()["status"] == "healthy", "the new version calls it healthy")
        versions.assert_goes_on(of_old, of_new)
        # And the old ones go, ingest last: the new worker drains what the old ingest takes
        versions.stop(old.batches, old.control, old.beat)
        versions.assert_goes_on(of_old, of_new)
        of_old.stop()
        versions.stop(old.ingest)
        versions.assert_goes_on(of_new)
        versions.wait(lambda: new.health()["status"] == "healthy", "the new version calls it healthy again")
    # Then everything that was acknowledged is stored once
    for traffic in (of_old, of_new):
        assert_kept_promises(traffic, versions.settings.database_url)
        assert set(traffic.outcomes.statuses) == {"202"}
