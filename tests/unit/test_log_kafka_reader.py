"""What was fetched from Kafka and not read yet is handed out without a hole, from where one stands."""

import struct

from kafka.record.default_records import DefaultRecordBatchBuilder

from pipeline.log.kafka import _PartitionReader
from pipeline.ports.log import LogBatch


def fetched(*offsets: range) -> bytes:
    """Record batches with these offsets, each record's value its offset."""
    data = b""
    for some in offsets:
        builder = DefaultRecordBatchBuilder(
            magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
            batch_size=1 << 30,
        )  # fmt: skip
        for number, offset in enumerate(some):
            builder.append(number, timestamp=0, key=None, value=b"%d" % offset, headers=[])
        batch = bytearray(builder.build())
        struct.pack_into(">q", batch, 0, some.start)
        data += bytes(batch)
    return data


def batch(offsets: range) -> LogBatch:
    return LogBatch(offsets.start, [b"%d" % offset for offset in offsets])


def test_batches_are_joined_and_cut_as_asked() -> None:
    reader = _PartitionReader(100)
    reader.fill(0, fetched(range(4), range(4, 9)))
    assert [reader.take(6), reader.take(2), reader.take(6), reader.take(6)] == [
        batch(range(6)),
        batch(range(6, 8)),
        batch(range(8, 9)),
        None,
    ]


def test_records_before_the_one_asked_for_are_left_out() -> None:
    # Given an answer whose batches begin before it
    reader = _PartitionReader(100)
    reader.fill(6, fetched(range(4), range(4, 9)))
    assert reader.take(100) == batch(range(6, 9))


def test_a_hole_ends_a_batch_and_begins_the_next() -> None:
    reader = _PartitionReader(100)
    reader.fill(0, fetched(range(3), range(5, 8), range(8, 9), range(20, 22)))
    assert [reader.take(100) for _ in range(4)] == [batch(range(3)), batch(range(5, 9)), batch(range(20, 22)), None]
    assert reader.offset == 22


def test_moving_elsewhere_forgets_what_was_fetched() -> None:
    reader = _PartitionReader(100)
    reader.fill(0, fetched(range(9)))
    reader.seek(0)
    assert reader.take(2) == batch(range(2))
    reader.seek(5)
    assert reader.take(2) is None


def test_whether_there_is_probably_more() -> None:
    reader = _PartitionReader(100)
    reader.fill(0, b"x" * 49)
    assert not reader.was_full
    reader.fill(0, b"x" * 50)
    assert reader.was_full
