"""Encodes log records as rows of PostgreSQL's binary COPY format.

Binary instead of text: encoding cost a fifth less, loading a third less, and nothing needs escaping
(docs/adr/sink-copy.md). Source: the PostgreSQL manual, COPY, "Binary Format".
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from pipeline.event import RecordedEvent
from pipeline.sink.poison import RejectedRecord

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_TRAILER: Final = struct.pack(">h", -1)

# Milliseconds from the Unix epoch to PostgreSQL's epoch, 2000-01-01.
_EPOCH_MS: Final = 946_684_800_000
_COLUMNS: Final = struct.pack(">h", 12)
_NULL: Final = struct.pack(">i", -1)
_JSONB_VERSION: Final = 1
_pack_length: Final = struct.Struct(">i").pack
_pack_times: Final = struct.Struct(">iqiq").pack
_pack_jsonb: Final = struct.Struct(">ib").pack
_pack_offset: Final = struct.Struct(">iq").pack

# Lengths up to this are looked up instead of packed: 25 ns instead of 60, five times a row.
_SHORT: Final = 1024
_LENGTHS: Final = tuple(_pack_length(length) for length in range(_SHORT))
# There are few severities and sources; above this number the cache is cleared.
_NAMES_MAX: Final = 4096
# Rows are sent in chunks: large enough to be cheap, small enough for PostgreSQL to start early.
_CHUNK_BYTES: Final = 64 * 1024

_REASON_CHARS_MAX: Final = 500


class _Record(RecordedEvent, gc=False):
    """The same, not tracked by the garbage collector: no object that a record refers to refers back to it."""


class _AsWritten(msgspec.Struct):
    """A record's attributes as raw JSON."""

    attributes: msgspec.Raw


_decode = msgspec.json.Decoder(_Record).decode
_decode_as_written = msgspec.json.Decoder(_AsWritten).decode
_encode_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The bytes of a COPY for one batch, encoded ahead, and the log and partition that they are for."""

    log_id: str
    partition: int
    chunks: list[bytes]
    letters: list[RejectedRecord]
    received_at_ms: list[int]


class RowEncoder:
    """Encodes records; caches the encoded form of repeated names."""

    def __init__(self) -> None:
        self._names: dict[str, bytes] = {}

    def rows(
        self,
        records: Iterable[bytes],
        place: bytes,
        first_offset: int,
        letters: list[RejectedRecord],
        received_at_ms: list[int],
    ) -> Iterator[bytes | None]:
        """One row for each record, in order and in COPY's binary format; None for one that is no event.

        `place` has the columns log_id and log_partition, see `place_columns`. The reason why a record is no event is
        added to `letters`, the time of its receipt to `received_at_ms`. All of it is one loop, because this loop takes
        most of a drain's CPU time: one call less for each row saves 0.1 µs.
        """
        names, offset = self._names, first_offset
        for record in records:
            try:
                event = _decode(record)
                event_id = event.event_id.encode()
                correlation_id = event.correlation_id.encode()
                message = event.message.encode()
                id_length, correlation_length, message_length = len(event_id), len(correlation_id), len(message)
                attributes = b"" if event.attributes is None else _encode_json(event.attributes)
                if not record.endswith(attributes, 0, -1):
                    # Ingest did not write it like this. Another producer's number may have more digits than a float,
                    # and jsonb keeps them all.
                    attributes = bytes(_decode_as_written(record).attributes)
                request_id = None if event.request_id is None else event.request_id.encode()
                row = b"".join(
                    (
                        _COLUMNS,
                        _LENGTHS[id_length] if id_length < _SHORT else _pack_length(id_length),
                        event_id,
                        _LENGTHS[correlation_length]
                        if correlation_length < _SHORT
                        else _pack_length(correlation_length),
                        correlation_id,
                        names.get(event.severity) or self._name(event.severity),
                        _LENGTHS[message_length] if message_length < _SHORT else _pack_length(message_length),
                        message,
                        names.get(event.source) or self._name(event.source),
                        _pack_times(8, (event.timestamp - _EPOCH_MS) * 1000, 8, (event.received_at - _EPOCH_MS) * 1000),
                        _pack_jsonb(len(attributes) + 1, _JSONB_VERSION) if attributes else _NULL,
                        attributes,
                        place,
                        _pack_offset(8, offset),
                        _NULL if request_id is None else _pack_length(len(request_id)),
                        request_id or b"",
                    )
                )
            except (msgspec.MsgspecError, ValueError, ArithmeticError, struct.error, RecursionError) as error:
                letters.append(RejectedRecord(offset - first_offset, printable(f"not an event: {error}"), None))
                yield None
            else:
                received_at_ms.append(event.received_at)
                yield row
            offset += 1

    def _name(self, text: str) -> bytes:
        if len(self._names) >= _NAMES_MAX:
            self._names.clear()
        encoded = self._names[text] = _field(text.encode())
        return encoded


def place_columns(log_id: str, partition: int) -> bytes:
    """The columns log_id and log_partition of a row."""
    return _field(log_id.encode()) + struct.pack(">ii", 4, partition)


def request_ids(records: Iterable[bytes]) -> list[str]:
    """The requests that these records came from, each once, in order; records that are no events are ignored."""
    names: dict[str, None] = {}
    for record in records:
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            name = _decode(record).request_id
            if name is not None:
                names[name] = None
    return list(names)


def copy_chunks(rows: Iterable[bytes | None], chunk_bytes: int = _CHUNK_BYTES) -> Iterator[bytes]:
    """The bytes of a COPY of `rows` (None is left out), in chunks of about 64 KiB."""
    chunk = [COPY_HEADER]
    size = 0
    for row in rows:
        if row is None:
            continue
        chunk.append(row)
        size += len(row)
        if size >= chunk_bytes:
            yield b"".join(chunk)
            chunk.clear()
            size = 0
    chunk.append(COPY_TRAILER)
    yield b"".join(chunk)


def printable(reason: str) -> str:
    """A reason in a form that PostgreSQL can store in a text column, of bounded length."""
    return reason.replace("\0", "\\0").encode(errors="backslashreplace").decode()[:_REASON_CHARS_MAX]


def _field(value: bytes) -> bytes:
    """A field of a row: its length, then its bytes."""
    return _pack_length(len(value)) + value
