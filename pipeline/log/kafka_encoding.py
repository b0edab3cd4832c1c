"""The encodings of Kafka's requests and responses (kafka.apache.org/protocol)."""

import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from pipeline.errors import LogUnavailableError

T = TypeVar("T")

UINT_CONTINUES: Final = 0x80


class ResponseReader:
    """Parses a response. Raises LogUnavailableError if it is malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise LogUnavailableError("an answer of the event log (Kafka) ends too soon")
        self._at += size
        return piece

    def int8(self) -> int:
        return int(struct.unpack(">b", self.take(1))[0])

    def int16(self) -> int:
        return int(struct.unpack(">h", self.take(2))[0])

    def int32(self) -> int:
        return int(struct.unpack(">i", self.take(4))[0])

    def int64(self) -> int:
        return int(struct.unpack(">q", self.take(8))[0])

    def uint(self) -> int:
        """Seven bits a byte, lowest bits first."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & ~UINT_CONTINUES) << shift
            if not byte & UINT_CONTINUES:
                return value
            shift += 7

    def string(self) -> str:
        """ "" for null too: no field read here needs the difference."""
        return self.take(max(0, self.int16())).decode(errors="replace")

    def compact_string(self) -> str:
        return self.take(max(0, self.uint() - 1)).decode(errors="replace")

    def blob(self) -> bytes:
        """b"" for null too."""
        return self.take(max(0, self.int32()))

    def array(self, element: Callable[[], T]) -> list[T]:
        return [element() for _ in range(max(0, self.int32()))]

    def compact_array(self, element: Callable[[], T]) -> list[T]:
        return [element() for _ in range(max(0, self.uint() - 1))]

    def tags(self) -> None:
        for _ in range(self.uint()):
            self.uint()
            self.take(self.uint())


def string(text: str | None) -> bytes:
    """A text with its length; None is null."""
    if text is None:
        return struct.pack(">h", -1)
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def array(elements: Sequence[bytes]) -> bytes:
    """Encoded elements with their number."""
    return struct.pack(">i", len(elements)) + b"".join(elements)


def blob(data: bytes) -> bytes:
    """Bytes with their length."""
    return struct.pack(">i", len(data)) + data


def uint(value: int) -> bytes:
    """Seven bits a byte, lowest bits first."""
    encoded = bytearray()
    while value >= UINT_CONTINUES:
        encoded.append(value % UINT_CONTINUES | UINT_CONTINUES)
        value //= UINT_CONTINUES
    encoded.append(value)
    return bytes(encoded)
