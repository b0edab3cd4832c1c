"""Faults of Sluice's own processes: killed, stopped, doubled, or with a wrong clock; and a fault of a client."""

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from checks.soak.fault import Effect, Fault
from checks.soak.rig import Rig, clock_environ
from checks.soak.windows import ClockSpan, Part
from checks.testbed.clocks import SteppableClock, fake_time_library
from checks.testbed.processes import ROOT, Program, beat
from checks.testbed.versions import OLD_COMMIT, old_checkout
from stack.servers import runs

# Longer than Celery's visibility time-out (SCALED: 5 s), so that others get the tasks of the stopped process.
BEYOND_VISIBILITY = (5.5, 7.0)
CLOCK_SHIFTS_SECONDS = (-3600, -90, 90, 3600)

Pick = Callable[[Rig, random.Random], Program]
# The parts that a program's fault disturbs, by the program's name.
PARTS = {
    "ingest": frozenset({Part.INGEST}),
    "worker": frozenset({Part.WORKERS}),
    "control-worker": frozenset({Part.LOOP}),
    "beat": frozenset({Part.LOOP}),
}


def any_ingest(rig: Rig, pick: random.Random) -> Program:
    return pick.choice(rig.ingests)


def status_of(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return "gone"


class ProgramKilled(Fault):
    """SIGKILL to a program's main process; the repair starts it again, as a supervisor would."""

    def __init__(self, pick: random.Random, name: str, which: Pick, seconds: tuple[float, float]) -> None:
        super().__init__(pick)
        self.name, self._which, self.seconds = f"{name}.kill", which, seconds
        self.touches = PARTS[name]
        self._pid = 0
        self._was = ""

    def inject(self, rig: Rig) -> None:
        self._program = self._which(rig, self.pick)
        rig.down.add(self._program)
        self._pid = self._program.pid
        rig.orphans += self._program.children()
        self._program.kill()
        self._was = status_of(self._pid)

    def repair(self, rig: Rig) -> None:
        self._program.start()
        rig.down.discard(self._program)

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._was == "gone", f"process {self._pid} {self._was}")


class ProgramFrozen(Fault):
    """SIGSTOP to a program's main process and its children, then SIGCONT."""

    def __init__(self, pick: random.Random, name: str, which: Pick, seconds: tuple[float, float]) -> None:
        super().__init__(pick)
        self.name, self._which, self.seconds = f"{name}.freeze", which, seconds
        self.touches = PARTS[name]
        self._members: list[psutil.Process] = []
        self._stopped = 0

    def inject(self, rig: Rig) -> None:
        self._program = self._which(rig, self.pick)
        rig.down.add(self._program)
        self._members = [member for member in self._program.freeze() if runs(member)]
        self._began = time.monotonic()

    def look(self, rig: Rig) -> None:
        self._stopped = sum(status_of(member.pid) == psutil.STATUS_STOPPED for member in self._members)

    def repair(self, rig: Rig) -> None:
        for member in self._members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()
        self._seconds = time.monotonic() - self._began
        rig.down.discard(self._program)

    def effect(self, rig: Rig) -> Effect:
        return Effect(
            self._stopped == len(self._members) > 0, f"{self._stopped} processes stopped for {self._seconds:.1f} s"
        )


CHILDREN_SECONDS_MAX = 15.0  # until a new worker has its children


def drain_children(rig: Rig) -> list[psutil.Process]:
    """The processes of the drains' worker, once it has some. Raises AssertionError."""
    rig.wait(lambda: bool(rig.batches.children()), "the worker has children", seconds_max=CHILDREN_SECONDS_MAX)
    return rig.batches.children()


class ChildKilled(Fault):
    """SIGKILL to one process of the drains' worker; Celery starts another."""

    name = "child.kill"
    seconds = (0.5, 1.0)
    touches = PARTS["worker"]

    def inject(self, rig: Rig) -> None:
        self._child = self.pick.choice(drain_children(rig))
        self._child.kill()
        with contextlib.suppress(psutil.TimeoutExpired):
            self._child.wait(2)

    def repair(self, rig: Rig) -> None:
        pass

    def effect(self, rig: Rig) -> Effect:
        was = status_of(self._child.pid)
        return Effect(was in ("gone", psutil.STATUS_ZOMBIE), f"process {self._child.pid} {was}")


class ChildFrozen(Fault):
    """SIGSTOP to processes of the drains' worker, with the partitions that they hold, then SIGCONT."""

    name = "child.freeze"
    seconds = BEYOND_VISIBILITY
    touches = PARTS["worker"]

    def inject(self, rig: Rig) -> None:
        children = drain_children(rig)
        self._children = self.pick.sample(children, max(1, len(children) // 2))
        for child in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.suspend()
        self._stopped = 0
        self._began = time.monotonic()

    def look(self, rig: Rig) -> None:
        self._stopped = max(self._stopped, sum(status_of(one.pid) == psutil.STATUS_STOPPED for one in self._children))

    def repair(self, rig: Rig) -> None:
        for child in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()
        self._seconds = time.monotonic() - self._began

    def effect(self, rig: Rig) -> Effect:
        return Effect(
            self._stopped == len(self._children), f"{self._stopped} processes stopped for {self._seconds:.1f} s"
        )


class TwoBeats(Fault):
    """A second Beat runs next to the first."""

    name = "two-beats"
    seconds = (3.0, 5.0)

    def inject(self, rig: Rig) -> None:
        folder = rig.folder / "second-beat"
        folder.mkdir(exist_ok=True)
        self._second = beat(rig.settings, folder)
        self._second.start()
        self._ticking = 0

    def look(self, rig: Rig) -> None:
        """A Beat connects to the broker with its first tick."""
        if rig.beat.is_running and self._second.is_running:
            pids = (rig.beat.pid, self._second.pid)
            self._ticking = max(self._ticking, sum(_is_connected(pid, rig.proxies["control"].port) for pid in pids))

    def has_hit(self, rig: Rig) -> bool:
        return self._ticking == 2

    def repair(self, rig: Rig) -> None:
        self._second.stop()

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._ticking == 2, f"{self._ticking} Beats connected to the broker at once")


def _is_connected(pid: int, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(one.raddr and one.raddr.port == port for one in psutil.Process(pid).net_connections("tcp"))
    return False


class ClockShifted(Fault):
    """A program runs with its wall clock shifted, and is then started with the right one. Its monotonic clock is right.

    Both starts come after a SIGTERM.
    """

    seconds = (3.0, 5.0)

    def __init__(self, pick: random.Random, name: str, which: Pick) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.clock", which
        self.touches = PARTS[name]
        self._shift = pick.choice(CLOCK_SHIFTS_SECONDS)

    def impossible(self, rig: Rig) -> str | None:
        return None if fake_time_library() is not None else "there is no libfaketime on this machine"

    def inject(self, rig: Rig) -> None:
        self._program = self._which(rig, self.pick)
        rig.down.add(self._program)
        self._program.stop()
        self._program.start(**clock_environ(SteppableClock(rig.folder, "shifted", seconds=self._shift)))
        self._mapped = False
        self._began = time.time()

    def look(self, rig: Rig) -> None:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{self._program.pid}/maps").read_text()
            self._mapped = self._mapped or "libfaketime" in maps

    def repair(self, rig: Rig) -> None:
        self._program.stop()
        if Part.INGEST in self.touches:
            self.clocks.append(ClockSpan(self._began, time.time(), self._shift))
        self._program.start()
        rig.down.discard(self._program)

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._mapped, f"{self._program.name} ran with its clock {self._shift:+d} s off")


class ClientKilled(Fault):
    """SIGKILL to a client: its requests without a noted answer are indeterminate."""

    name = "client.kill"
    seconds = (0.2, 0.5)

    def inject(self, rig: Rig) -> None:
        self._pid = rig.kill_client()

    def repair(self, rig: Rig) -> None:
        pass

    def effect(self, rig: Rig) -> Effect:
        was = status_of(self._pid)
        return Effect(was == "gone", f"process {self._pid} {was}")


# The log line that shows that a program is working.
_AT_WORK = {"ingest": "ingest listens on", "worker": " ready."}


class OlderVersion(Fault):
    """An older version replaces one program and works beside today's programs; then today's version returns.

    Both starts come after a SIGTERM.
    """

    seconds = (8.0, 12.0)  # the start takes some of them

    def __init__(self, pick: random.Random, name: str, which: Pick) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.old", which
        self.touches = PARTS[name]
        self._says = _AT_WORK[name]
        self._at_work = 0
        self._has_ended = False

    def impossible(self, rig: Rig) -> str | None:
        is_there = old_checkout(rig.folder) is not None
        return None if is_there else f"the history of this checkout has no commit {OLD_COMMIT}"

    def inject(self, rig: Rig) -> None:
        program = self._program = self._which(rig, self.pick)
        root = old_checkout(rig.folder)
        assert root is not None
        rig.down.add(program)
        program.stop()
        self._log_begin = len(program.log())
        program.root = root
        # Without the steppable clock: libfaketime reads the environment at each clock read. This crashes (SIGSEGV
        # in getenv) if another thread sets a variable at that time, as libraries do at a start.
        program.start(LD_PRELOAD="")

    def look(self, rig: Rig) -> None:
        self._at_work = self._program.log().count(self._says, self._log_begin)

    def has_hit(self, rig: Rig) -> bool:
        return self._at_work > 0

    def repair(self, rig: Rig) -> None:
        status = self._program.exit_status
        self._has_ended = status is not None
        if self._has_ended:
            said = self._program.log()[self._log_begin :].strip().rpartition("\n")[2]
            self.complaints.append(
                f"{self._program.name} of {OLD_COMMIT} has ended by itself: exit status {status}, "
                f"last line of its log: {said!r}"
            )
        self._program.stop()
        self._program.root = ROOT
        self._program.start()
        rig.down.discard(self._program)

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._at_work > 0 and not self._has_ended, f"{self._program.name} of {OLD_COMMIT} was at work")
