"""What a worker's main process knows of the pauses, for the drains in its children, without a call."""

import mmap
import struct
import zlib
from collections.abc import Iterable
from typing import Final

from pipeline.breaker import SinkBreaker
from pipeline.clock import Clock
from pipeline.ports.control import Pause
from pipeline.settings import Settings

# The main process reads the pauses at each change of them, and once a second. A drain that finds an older read asks the
# control store itself.
KNOWN_SECONDS_MAX: Final = 1.5
_FORMAT: Final = struct.Struct("dI")  # when they were read (monotonic seconds), and a checksum of them
_ENDING_AT: Final = _FORMAT.size  # the byte behind the note: whether the worker stops
_SHORT_AT: Final = _ENDING_AT + 1  # the next one: whether tasks wait for a process of the worker
# A drain without records waits so many times DRAIN_POLL_SECONDS for them while a recent note says what is paused. It
# checks the pauses before each batch in any case, so that a longer wait stores nothing that a shorter one would not.
QUIET_POLLS: Final = 3


class KnownPauses:
    """A note in memory that a process shares with the children that it forks. One process writes.

    The monotonic clock is that of the host, so their times can be compared. A child that was not forked finds no note,
    and neither does one that reads while the note changes: both ask the control store.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SHORT_AT + 1)

    def note(self, pauses: Iterable[Pause], now: float) -> None:
        """Record that these pauses were read from the control store."""
        _FORMAT.pack_into(self._memory, 0, now, _checksum(pauses))

    def are(self, pauses: Iterable[Pause], now: float) -> bool:
        """Whether these are the pauses of a note that is recent."""
        noted_at, checksum = _FORMAT.unpack_from(self._memory)
        return 0 <= now - noted_at <= KNOWN_SECONDS_MAX and bool(checksum == _checksum(pauses))

    def is_recent(self, now: float) -> bool:
        """Whether the main process has read the pauses a moment ago."""
        noted_at: float
        noted_at, _ = _FORMAT.unpack_from(self._memory)
        return 0 <= now - noted_at <= KNOWN_SECONDS_MAX

    def note_ending(self) -> None:
        """Record that the worker stops: drains without records end their runs."""
        self._memory[_ENDING_AT] = 1

    @property
    def is_ending(self) -> bool:
        """Whether the worker stops."""
        return self._memory[_ENDING_AT] == 1

    def note_short(self, *, is_short: bool) -> None:
        """Record whether drains wait for a process while the worker has none that is free."""
        self._memory[_SHORT_AT] = is_short

    @property
    def is_short(self) -> bool:
        """Whether drains waited for a process at the last look."""
        return self._memory[_SHORT_AT] == 1


class QuietWorker:
    """What a worker process allows its drains while no records arrive; see `pipeline.drain.context.Quiet`."""

    def __init__(self, known: KnownPauses, breaker: SinkBreaker, settings: Settings, clock: Clock) -> None:
        self._known = known
        self._breaker = breaker
        self._clock = clock
        self._seconds = settings.drain_poll_seconds
        # A silent broker of Kafka holds up the partitions of a run for as long as one wait.
        self._polls = 1 if settings.log_scheme == "kafka" else QUIET_POLLS

    def poll_seconds(self) -> float:
        """How long one wait may last. A drain that must ask the control store itself does so as often as ever."""
        asks = self._breaker.is_open or not self._known.is_recent(self._clock.monotonic())
        return self._seconds if asks else self._seconds * self._polls

    def is_ending(self) -> bool:
        """Whether a run without records ends: the worker stops, or other drains wait for its process."""
        return self._known.is_ending or self._known.is_short


def _checksum(pauses: Iterable[Pause]) -> int:
    return zlib.crc32(repr([pause.occurrence for pause in pauses]).encode())
