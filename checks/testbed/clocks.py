"""A wall clock that a test steps while programs and servers run under it; their monotonic clock stays right.

It is libfaketime (Debian: libfaketime), which reads the clock's offset from a file at every call.
"""

import dataclasses
from itertools import takewhile
from pathlib import Path

from pipeline.clock import SystemClock
from stack.servers import Server

LIBRARY_PLACES = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/faketime/libfaketimeMT.so.1"),
)


def fake_time_library() -> Path | None:
    """libfaketime for programs with threads, if the machine has it."""
    return next((place for place in LIBRARY_PLACES if place.exists()), None)


class SteppableClock:
    """The wall clock of a server (`under`), or of a program that is started with `environ` (`Program.start`).

    Several may share one clock. It starts at the right time, or `seconds` off.
    """

    def __init__(self, folder: Path, name: str = "clock", *, seconds: float = 0.0) -> None:
        library = fake_time_library()
        assert library is not None, "there is no libfaketime on this machine"
        self.seconds = 0.0  # how far ahead of the real clock it is now
        self._file = folder / f"{name}.faketime"
        self.step(seconds)
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the name before version 0.9.10
            "FAKETIME_DONT_RESET": "1",
        }

    def step(self, seconds: float) -> None:
        """Set the clock forward, or back if `seconds` is negative, at once and for all programs under it."""
        self.seconds += seconds
        written = self._file.with_suffix(".new")
        written.write_text(f"{self.seconds:+f}s\n")
        written.chmod(0o644)  # PostgreSQL runs as another user
        written.rename(self._file)  # no program reads half of it

    def under(self, server: Server) -> Server:
        """The same server, which runs under this clock from its next start on."""
        # After the words that change the user: libfaketime could not open a file that it made as another user.
        before = [*takewhile(lambda word: word.startswith("--") or word.endswith("setpriv"), server.command)]
        words = ["env", *(f"{name}={value}" for name, value in self.environ.items())]
        return dataclasses.replace(server, command=[*before, *words, *server.command[len(before) :]])


class SteppedSystemClock(SystemClock):
    """The machine's clocks with a stepped wall clock, for code in this process."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return super().now() + self.seconds

    def step(self, seconds: float) -> None:
        """As SteppableClock's."""
        self.seconds += seconds
