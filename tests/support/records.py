"""Log records for tests of what comes behind the log."""

import uuid
from typing import Any, Final

from pipeline.event import Event, encode_record, record_head
from pipeline.ports.log import LogBatch

RECEIVED_AT_MS: Final = 1_760_000_000_123


def record(
    number: int = 0, *, received_at_ms: int = RECEIVED_AT_MS, request_id: str = "tests-1", **fields: Any
) -> bytes:
    """A record of an event; its id comes from `number` unless `event_id` is given."""
    event = {
        "correlation_id": f"request-{number % 7}",
        "severity": "INFO",
        "message": f"message {number}",
        "source": "tests",
        "timestamp": 1_700_000_000_000 + number,
        "event_id": f"event-{number:06d}",
        **fields,
    }
    return encode_record(Event(**event), record_head(received_at_ms, request_id))


def batch(offset: int, values: list[bytes], gap_from: int | None = None) -> LogBatch:
    """A batch that begins at `offset`."""
    return LogBatch(offset, values, gap_from)


def numbered_batch(offset: int, count: int) -> LogBatch:
    """A batch whose event at each offset has that number."""
    return LogBatch(offset, [record(offset + index) for index in range(count)])


def new_log_id() -> str:
    """The id of a log that no other test uses."""
    return uuid.uuid4().hex


def nothing() -> None:
    """A `before_commit` that has nothing against it."""
