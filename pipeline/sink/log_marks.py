"""Marks of the event log in PostgreSQL, whose clock alone dates them."""

from pipeline.ports.log_marks import ExpiredRecords
from pipeline.sink.queries import query
from pipeline.sink.session import Session


class PostgresLogMarks:
    """Marks over a connection that other stores may share."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def mark(self, log_id: str, *, spacing_seconds: float, keep_seconds: float) -> None:
        values = {"log_id": log_id, "spacing_seconds": spacing_seconds, "keep_seconds": keep_seconds}
        self._session.count(query("forget_log_marks"), values)
        self._session.count(query("mark_log"), values)

    def expired(self, log_id: str, *, keep_seconds: float) -> tuple[list[ExpiredRecords], float]:
        rows = self._session.rows(query("expired_log_records"), {"log_id": log_id, "keep_seconds": keep_seconds})
        found = [
            ExpiredRecords(int(partition), int(below), int(next_offset), bytes(digest))
            for partition, below, next_offset, digest, _ in rows
            if partition is not None
        ]
        return found, float(rows[0][-1])
