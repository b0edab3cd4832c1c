"""Checks that the log still holds the last stored record. If it holds another one there, it lost its tail."""

from pipeline.ports.event_sink import StoredPosition
from pipeline.ports.log import EventLog, record_digest


def holds_another_record(log: EventLog, stored: StoredPosition | None, partition: int) -> bool:
    """Whether the log holds another record at the offset of the last stored one.

    If so, it lost its tail and has been appended to since. Some of its records are below the stored offset, and no
    drain would read them. False if that is unknown, or if the log holds no record at that offset any more. Raises as
    EventLog.read does.
    """
    if stored is None or stored.last_digest is None:
        return False
    last = stored.next_offset - 1
    batch = log.read(partition, last, records_max=1, wait_seconds=0)
    return batch is not None and batch.offset == last and record_digest(batch.values[0]) != stored.last_digest
