"""Record batches are taken apart as kafka-python, the oracle, takes them apart; damage is never read as records."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder

from pipeline.errors import LogUnavailableError
from pipeline.log.kafka_records import Run, runs

# Sizes on both sides of where a length takes another byte
sizes = st.one_of(st.integers(0, 300), st.sampled_from([8190, 8191, 8192, 16383, 16384, 20_000, 1_100_000]))
blobs = st.builds(lambda size, fill: bytes([fill]) * size, sizes, st.integers(0, 255))
headers = st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=200)), max_size=3)
records = st.tuples(blobs | st.none(), st.binary(max_size=200) | st.none(), headers, st.integers(0, 2**40))


def made(values: Sequence[Any], *, base: int = 0, offsets: Sequence[int] | None = None, compression: int = 0) -> bytes:
    """A batch of (value, key, headers, timestamp), written by kafka-python."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1 << 30,
    )  # fmt: skip
    for number, (value, key, its_headers, timestamp) in enumerate(values):
        at = number if offsets is None else offsets[number]
        assert builder.append(at, timestamp=timestamp, key=key, value=value, headers=its_headers) is not None
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base)
    return bytes(batch)


def simple(count: int, **how: Any) -> bytes:
    return made([(b"%d" % number, None, [], 1_700_000_000_000) for number in range(count)], **how)


def by_the_oracle(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    batches = MemoryRecords(data)
    while batches.has_next():
        found += [(record.offset, record.value or b"") for record in batches.next_batch()]
    return found


def flat(found: Sequence[Run]) -> list[tuple[int, bytes]]:
    return [(first + number, value) for first, values in found for number, value in enumerate(values)]


@given(st.lists(st.lists(records, min_size=1, max_size=8), max_size=3), st.integers(0, 2**50))
@settings(max_examples=150)
def test_any_records_are_read_as_the_oracle_reads_them(batches: list[list[Any]], base: int) -> None:
    data = b""
    for values in batches:
        data += made(values, base=base)
        base += len(values)
    assert flat(list(runs(data))) == by_the_oracle(data)


@given(st.sets(st.integers(0, 40_000), min_size=1, max_size=30))
@settings(max_examples=100)
def test_each_hole_begins_a_run(offsets: set[int]) -> None:
    # Given a batch from which records were taken out, as compaction does
    ordered = sorted(offsets)
    data = made([(b"%d" % offset, None, [], 0) for offset in ordered], base=100, offsets=ordered)
    # Then no run has a hole, and each begins behind one
    found = list(runs(data))
    assert flat(found) == [(100 + offset, b"%d" % offset) for offset in ordered]
    ends = [first + len(values) for first, values in found]
    assert all(first > end for (first, _), end in zip(found[1:], ends, strict=False))


def test_more_records_than_a_length_of_two_bytes_counts() -> None:
    data = simple(20_000, base=7)
    [(first, values)] = list(runs(data))
    assert (first, len(values), values[-1]) == (7, 20_000, b"19999")


@pytest.mark.parametrize("compression", [0, 1], ids=["plain", "gzip"])
@pytest.mark.parametrize("cut", [1, 17, 60, 61, 150])
def test_a_batch_that_is_cut_off_is_left_for_the_next_fetch(compression: int, cut: int) -> None:
    first, second = simple(20, compression=compression), simple(20, base=20, compression=compression)
    assert len(flat(list(runs(first + second)))) == 40
    assert len(flat(list(runs(first + second[:cut])))) == 20


@pytest.mark.parametrize("magic", [0, 1])
def test_batches_of_old_versions_are_read_too(magic: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, 0, 1 << 20)
    for number in range(5):
        builder.append(number, 1_700_000_000_000 if magic else None, None, b"%d" % number)
    assert flat(list(runs(bytes(builder.build())))) == [(number, b"%d" % number) for number in range(5)]


def test_a_transactions_marker_is_no_record() -> None:
    marker = bytearray(simple(1, base=5))
    struct.pack_into(">h", marker, 21, 0x30)  # transactional, control
    struct.pack_into(">I", marker, 17, crc32c(bytes(marker[21:])))
    data = simple(5) + bytes(marker) + simple(2, base=6)
    assert [(first, len(values)) for first, values in runs(data)] == [(0, 5), (6, 2)]


@pytest.mark.parametrize("compression", [0, 1], ids=["plain", "gzip"])
def test_any_damaged_bit_is_found(compression: int) -> None:
    # Given a batch, and each of its bits behind the checksum turned over, one at a time
    data = simple(10, compression=compression)
    for at in range(21, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        # Then it is damaged, not other records
        with pytest.raises(LogUnavailableError):
            list(runs(bytes(damaged)))


@given(st.binary(max_size=200), st.integers(0, 61))
def test_whatever_is_not_a_batch_is_an_error_or_nothing(noise: bytes, kept: int) -> None:
    data = simple(3)[:kept] + noise
    try:
        found = flat(list(runs(data)))
    except LogUnavailableError:
        return
    assert found == []


@given(st.binary(min_size=1, max_size=120), st.integers(0, 5))
def test_records_that_contradict_themselves_under_a_right_checksum_are_an_error(body: bytes, count: int) -> None:
    # Given a batch whose records are noise, with a checksum that fits
    batch = bytearray(simple(1)[:61]) + body
    struct.pack_into(">i", batch, 8, len(batch) - 12)
    struct.pack_into(">i", batch, 57, count)
    struct.pack_into(">I", batch, 17, crc32c(bytes(batch[21:])))
    # Then it is an error, or values that all stand in it
    try:
        found = flat(list(runs(bytes(batch))))
    except LogUnavailableError:
        return
    assert len(found) == count
    assert all(value in body for _, value in found)


@pytest.mark.parametrize("codec", [1, 2, 3, 4], ids=["gzip", "snappy", "lz4", "zstd"])
def test_a_compression_that_is_not_installed_or_whose_data_is_damaged_is_said(codec: int) -> None:
    batch = bytearray(simple(3, compression=1))
    batch[61:63] = b"xx"  # gzip's own mark
    struct.pack_into(">h", batch, 21, codec)
    struct.pack_into(">I", batch, 17, crc32c(bytes(batch[21:])))
    with pytest.raises(LogUnavailableError, match="can't be read"):
        list(runs(bytes(batch)))


def with_bytes(batch: bytes, at: int, new: bytes) -> bytes:
    """A batch with other bytes at one place, and a checksum that fits."""
    changed = bytearray(batch)
    changed[at : at + len(new)] = new
    struct.pack_into(">I", changed, 17, crc32c(bytes(changed[21:])))
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "new", "said"),
    [
        (66, bytes([2 * 4]), "longer than its batch"),  # a value of 4 bytes in a record with room for 3
        (61, bytes([2 * 60]), "longer than its batch"),  # a record of 60 bytes in a batch with less
        (57, struct.pack(">i", 1), "left behind"),  # one record fewer than there are
    ],
    ids=["value", "record", "count"],
)
def test_lengths_that_do_not_fit_are_an_error(at: int, new: bytes, said: str) -> None:
    data = made([(b"abc", None, [], 0), (b"def", None, [], 0)])
    assert data[66] == 2 * 3
    with pytest.raises(LogUnavailableError, match=said):
        list(runs(with_bytes(data, at, new)))
