"""Bounds the memory of all bodies that a process has received and not yet appended.

A body arrives in parts, at its client's speed. Without a bound, many stalled bodies would each hold their largest size.
"""

from types import TracebackType
from typing import Final

from pipeline.errors import OverloadedError

SMALL_BYTES: Final = 16 * 1024


class HeldBodies:
    """The bytes of all bodies of one process. For the event loop only."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.bytes = 0

    def begin(self) -> "HeldBytes":
        """The account of one body; use it in a `with` statement."""
        return HeldBytes(self)

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes are within the bound."""
        return self.bytes + size <= self._bytes_max


class HeldBytes:
    """The bytes of one body; released at the end of the `with` statement."""

    __slots__ = ("_all", "_mine")

    def __init__(self, everything: HeldBodies) -> None:
        self._all = everything
        self._mine = 0

    def __enter__(self) -> "HeldBytes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._all.bytes -= self._mine
        self._mine = 0

    def take(self, size: int) -> None:
        """Count bytes that were received. Raises OverloadedError if all bodies together have too many.

        If there is no other body, a body of any size is received: a later retry would not make it smaller. A small body
        is received too, even if many others stall: the limit of connections bounds these.
        """
        is_alone = self._all.bytes == self._mine
        is_small = self._mine + size <= SMALL_BYTES
        if not (is_alone or is_small or self._all.has_room(size)):
            raise OverloadedError("the bodies in memory have reached their limit (BODIES_BYTES_MAX)")
        self.note(size)

    def note(self, size: int) -> None:
        """Count bytes that arrived at once: they are in memory already, and leave it soon."""
        self._mine += size
        self._all.bytes += size
