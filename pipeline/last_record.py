"""Whether the log still holds the record that was stored last: where another one stands there, its tail was lost."""

from pipeline.ports.log import EventLog, record_digest
from pipeline.ports.sink import StoredPosition


def holds_another_record(log: EventLog, stored: StoredPosition | None, partition: int) -> bool:
    """Whether the log holds another record at the offset of the one that was stored last.

    Then it lost its tail and has been appended to since: some of its records lie below the stored offset, and nobody
    would read them. False where that is not known, or the log holds none at that offset any more. Raises as
    EventLog.read does.
    """
    if stored is None or stored.last_digest is None:
        return False
    last = stored.next_offset - 1
    batch = log.read(partition, last, records_max=1, wait_seconds=0)
    return batch is not None and batch.offset == last and record_digest(batch.values[0]) != stored.last_digest
