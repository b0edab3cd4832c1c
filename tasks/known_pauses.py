"""What a worker's main process knows of the pauses, for the drains in its children, without a call."""

import mmap
import struct
import zlib
from collections.abc import Iterable
from typing import Final

from pipeline.ports.control import Pause

# The main process reads the pauses at each change of them, and once a second. A drain that finds an older read asks the
# control store itself.
KNOWN_SECONDS_MAX: Final = 1.5
_FORMAT: Final = struct.Struct("dI")  # when they were read (monotonic seconds), and a checksum of them


class KnownPauses:
    """A note in memory that a process shares with the children that it forks. One process writes.

    The monotonic clock is that of the host, so their times can be compared. A child that was not forked finds no note,
    and neither does one that reads while the note changes: both ask the control store.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _FORMAT.size)

    def note(self, pauses: Iterable[Pause], now: float) -> None:
        """Record that these pauses were read from the control store."""
        _FORMAT.pack_into(self._memory, 0, now, _checksum(pauses))

    def are(self, pauses: Iterable[Pause], now: float) -> bool:
        """Whether these are the pauses of a note that is recent."""
        noted_at, checksum = _FORMAT.unpack_from(self._memory)
        return 0 <= now - noted_at <= KNOWN_SECONDS_MAX and bool(checksum == _checksum(pauses))


def _checksum(pauses: Iterable[Pause]) -> int:
    return zlib.crc32(repr([pause.occurrence for pause in pauses]).encode())
