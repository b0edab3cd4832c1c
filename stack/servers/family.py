"""A process and all its descendants, which are stopped, continued or killed together."""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from stack.servers.errors import ServerError

_STOPPED: Final = frozenset("TtZX")  # states of a thread in /proc: stopped, traced, or at its end


def family_of(main: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants, itself first; nothing where it has ended."""
    try:
        return [main, *main.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def freeze_family(main: psutil.Process, *, seconds_max: float = 120.0) -> list[psutil.Process]:
    """SIGSTOP to a process and all its descendants. Returns them when none of their threads runs any more.

    A process can start another between the look at its children and its stop. So they are looked up again when it has
    stopped, until there is none that runs. Raises ServerError where one does not stop; then all of them continue.
    """
    deadline = time.monotonic() + seconds_max
    frozen: list[psutil.Process] = []
    found = [main]
    try:
        while found:
            for member in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.suspend()
                frozen.append(member)
            wait_stopped(found, seconds_max=max(0.0, deadline - time.monotonic()))
            found = [member for member in family_of(main) if member not in frozen]
    except BaseException:
        _resume(frozen)
        raise
    return frozen


def thaw_family(main: psutil.Process) -> None:
    """SIGCONT to a process and all its descendants, itself last."""
    _resume(family_of(main))


def kill_family(main: psutil.Process) -> list[psutil.Process]:
    """SIGKILL to a process and all its descendants, which are stopped before: so none starts another meanwhile.

    Returns them; they may need some time to end.
    """
    try:
        members = freeze_family(main, seconds_max=30.0)
    except ServerError:  # as one that waits for a disk
        members = family_of(main)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    return members


def _resume(members: Iterable[psutil.Process]) -> None:
    for member in reversed(list(members)):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.resume()


def wait_stopped(members: Iterable[psutil.Process], *, seconds_max: float = 120.0) -> None:
    """Wait until each thread of these processes has stopped, after a SIGSTOP.

    The kernel gives the signal to one thread, which stops the others when its turn comes. On a busy machine, these
    respond until then. Raises ServerError.
    """
    deadline = time.monotonic() + seconds_max
    for member in members:
        while not _is_stopped(member.pid):
            if time.monotonic() > deadline:
                raise ServerError(f"process {member.pid} has not stopped within {seconds_max:g} s of SIGSTOP")
            time.sleep(0.001)


def wait_ended(members: Iterable[psutil.Process], *, seconds_max: float = 60.0) -> None:
    """Wait until each of these processes has ended, after a SIGKILL. Raises ServerError.

    The signal is sent at once, and a process ends when its turn comes and its memory is given back. A zombie has ended:
    not every init reaps those that it inherits.
    """
    deadline = time.monotonic() + seconds_max
    for member in members:
        while runs(member):
            if time.monotonic() > deadline:
                raise ServerError(f"process {member.pid} has not ended within {seconds_max:g} s of SIGKILL")
            time.sleep(0.001)


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended. A zombie has: not every init reaps those that it inherits."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs; a process that has ended counts as stopped."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # the process has ended
        return True
    for thread in threads:
        with contextlib.suppress(OSError):  # the thread has ended
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] not in _STOPPED:
                return False
    return True
