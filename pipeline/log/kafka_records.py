"""Parses Kafka's Fetch responses: record batches, and the records in them.

kafka-python's own decoder creates an object for each record's key, headers and times, which takes 6 to 7 µs a record. A
drain needs only values and offsets, which take less than 1 µs (docs/adr/drain-speed.md). Source: Kafka's documentation,
"Message Format", record batches of version 2. kafka-python still decodes batches that are compressed or of an older
version.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

import zstandard
from crc32c import crc32c
from kafka.errors import KafkaError
from kafka.record import MemoryRecords

from pipeline.errors import LogUnavailableError

Run = tuple[int, list[bytes]]  # the offset of the first value; the others follow it without a hole

# base offset, length from here on, leader's epoch, version, checksum, attributes, last offset's delta, first and last
# time, producer's id and epoch, base sequence, number of records
_HEAD: Final = struct.Struct(">qiibIhiqqqhii")
_LENGTH_END: Final = 12  # of base offset and length, which the length field does not include
_VERSION_AT: Final = 16
_CHECKED_FROM: Final = 21  # the checksum covers everything from the attributes on
_VERSION: Final = 2
_OLD_LENGTH_MIN: Final = 14  # of a batch of version 0, which is a single record
_DAMAGED: Final = (zlib.error, zstandard.ZstdError, OSError, EOFError, ValueError)  # of what decompresses
_CODEC: Final = 0x07  # of the attributes: 0 is no compression
_CONTROL: Final = 0x20  # of the attributes: a transaction's marker, which contains no record
_NULL: Final = 1  # a length of -1, as a varint


def runs(data: bytes) -> Iterator[Run]:
    """The records of a Fetch response, one run for each batch without a hole; decoded lazily.

    The last batch may be cut off: Kafka fills a response up to its limit. The response may contain records before the
    requested offset, because they are in the same batch. Raises LogUnavailableError if the data is not in Kafka's
    format.
    """
    at = 0
    while len(data) - at > _VERSION_AT:
        base, length = struct.unpack_from(">qi", data, at)
        end = at + _LENGTH_END + length
        is_ours = data[at + _VERSION_AT] == _VERSION
        if length < (_HEAD.size - _LENGTH_END if is_ours else _OLD_LENGTH_MIN):
            raise LogUnavailableError(f"a record batch of the event log (Kafka) says that it is {length} bytes long")
        if end > len(data):
            return
        if not is_ours:
            yield from _by_kafka_python(data[at:end])
            at = end
            continue
        _, _, _, _, checksum, attributes, _, _, _, _, _, _, count = _HEAD.unpack_from(data, at)
        if attributes & _CODEC:
            yield from _by_kafka_python(data[at:end])
        elif not attributes & _CONTROL:
            if crc32c(memoryview(data)[at + _CHECKED_FROM : end]) != checksum:
                raise LogUnavailableError(f"the record batch at offset {base} of the event log (Kafka) is damaged")
            try:
                yield from _plain(data, at + _HEAD.size, end, base, count)
            except (IndexError, ValueError) as error:
                raise LogUnavailableError(
                    f"the record batch at offset {base} of the event log (Kafka) can't be read: {error}"
                ) from error
        at = end


def _plain(data: bytes, at: int, end: int, base: int, count: int) -> list[Run]:  # noqa: PLR0912
    """The records of a batch that is not compressed. Raises IndexError, ValueError.

    One loop, without function calls for lengths below 16 KiB: this loop is most of the cost of reading a backlog.
    """
    found: list[Run] = []
    values: list[bytes] = []
    first = expected = 0
    for _ in range(count):
        low = data[at]
        if low < 0x80:
            size, at = low >> 1, at + 1
        elif (high := data[at + 1]) < 0x80:
            size, at = (low & 0x7F | high << 7) >> 1, at + 2
        else:
            size, at = _varint(data, at)
        record_end = at + size
        at += 1  # attributes, which are unused
        while data[at] >= 0x80:  # time
            at += 1
        at += 1
        low = data[at]
        if low < 0x80:
            delta, at = low >> 1, at + 1
        elif (high := data[at + 1]) < 0x80:
            delta, at = (low & 0x7F | high << 7) >> 1, at + 2
        else:
            delta, at = _varint(data, at)
        if data[at] == _NULL:  # no key
            at += 1
        else:
            size, at = _varint(data, at)
            at += size
        low = data[at]
        if low < 0x80:
            size, at = (0 if low == _NULL else low >> 1), at + 1
        elif (high := data[at + 1]) < 0x80:
            size, at = (low & 0x7F | high << 7) >> 1, at + 2
        else:
            size, at = _varint(data, at)
        if at + size >= record_end or record_end > end:  # the number of headers follows the value
            raise ValueError("a record is longer than its batch")
        if delta != expected:
            if values:
                found.append((base + first, values))
                values = []
            first = expected = delta
        values.append(data[at : at + size])
        expected += 1
        at = record_end  # headers are not used here
    if at != end:
        raise ValueError(f"{end - at} bytes are left behind its records")
    if values:
        found.append((base + first, values))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag-encoded number of at most 64 bits, and the index after it. Raises IndexError, ValueError."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _by_kafka_python(batch: bytes) -> Iterator[Run]:
    """The records of one batch, decoded by kafka-python: any version, any installed compression."""
    try:
        records = MemoryRecords(batch)
        while records.has_next():
            found = records.next_batch()
            if found is None:
                return
            if getattr(found, "is_control_batch", False):
                continue
            if not found.validate_crc():
                raise LogUnavailableError("a record batch of the event log (Kafka) is damaged")
            yield from _joined((record.offset, record.value or b"") for record in found)
    # NotImplementedError: the library of a compression is not installed. AssertionError: kafka-python asserts what it
    # reads in batches of old versions.
    except (KafkaError, NotImplementedError, AssertionError, *_DAMAGED) as error:
        raise LogUnavailableError(f"a record batch of the event log (Kafka) can't be read: {error!r}") from error


def _joined(records: Iterator[tuple[int, bytes]]) -> Iterator[Run]:
    """Runs of records without a hole."""
    first = 0
    values: list[bytes] = []
    for offset, value in records:
        if values and offset != first + len(values):
            yield first, values
            values = []
        if not values:
            first = offset
        values.append(value)
    if values:
        yield first, values
