"""What happens to clients when their process forks or ends.

A forked child starts with an empty queue: the events in it are the parent's, and the parent sends them. At the end of
the program, each client sends what it can within its `close_seconds`, and standard error says what was not sent.
"""

import atexit
import contextlib
import os
import signal
import sys
import weakref
from types import FrameType
from typing import Final, Protocol

from sluice_client.counters import Summary


class Endable(Protocol):
    """A client, as far as the end of its process is concerned."""

    @property
    def url(self) -> str:
        """Where it sends events."""

    @property
    def close_seconds(self) -> float:
        """How long its end may take."""

    def begin_close(self, seconds: float) -> None:
        """Accept no more events, and send the rest within this time."""

    def finish_close(self) -> Summary:
        """Wait until that has happened."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""


_clients: Final[weakref.WeakSet[Endable]] = weakref.WeakSet()


def register(client: Endable) -> None:
    """Look after this client until it is gone."""
    _clients.add(client)


def close_all() -> None:
    """Close all clients at the same time, and write to standard error what was not sent."""
    clients = list(_clients)
    for client in clients:
        client.begin_close(client.close_seconds)
    for client in clients:
        summary = client.finish_close()
        _clients.discard(client)
        if summary.unsent or summary.stats.spilled:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed, or None
                sys.stderr.write(f"sluice-client: {client.url}: {summary}\n")


def close_with_process() -> None:
    """Close at the end of a child of `multiprocessing`, which ends without the hooks of `atexit`."""
    if "multiprocessing.util" not in sys.modules:  # each such child has it
        return
    from multiprocessing import parent_process, util  # noqa: PLC0415  # most programs do not need it

    if parent_process() is not None:
        _finalize_later(_clients)
    else:  # a child of a forkserver becomes one only after the import of its main module, and forgets its finalizers
        util.register_after_fork(_clients, _finalize_later)


def _finalize_later(_: object) -> None:
    from multiprocessing.util import Finalize  # noqa: PLC0415  # see above

    Finalize(None, close_all, exitpriority=-100)  # after those of the program


def exit_on_sigterm() -> None:
    """Let SIGTERM end the program like `sys.exit`, so that clients send their events.

    By default SIGTERM ends a Python program at once, and its queues are lost. Call this in the main thread. It changes
    nothing if the program has a handler of its own. Web servers and Celery have one.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client.after_fork_in_child()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
