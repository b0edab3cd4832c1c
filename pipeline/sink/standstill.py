"""The reason why a partition makes no progress, as far as PostgreSQL knows: which session holds or blocks it."""

from typing import Final

from pipeline.sink.locks import lock_holders, lock_key
from pipeline.sink.queries import query
from pipeline.sink.session import Row, Session

# A drain queries PostgreSQL many times a second, or waits for it. A drain that is silent for longer is frozen.
_SILENT_SECONDS: Final = 10.0


def why_standing(session: Session, log_id: str, partition: int) -> str | None:
    """Why the partition's drain stores nothing, in words; None if no drain holds it. Raises SinkUnavailableError."""
    for row in session.rows(query("drainer"), {"key": lock_key(log_id, partition)}):
        return _words(session, row)
    holders = lock_holders(session)
    return f"storing waits for a lock: {holders}" if holders else None


def _words(session: Session, drainer: Row) -> str:
    pid, host, state, event_type, seconds = drainer
    drain = f"its drain (pid {pid} in PostgreSQL, from {host})"
    holders = lock_holders(session)
    if event_type == "Lock" or holders:
        return f"{drain} waits for a lock: {holders or 'it was just released'}"
    if state == "active":
        return f"{drain} has been executing one statement for {seconds:.0f} s"
    if seconds >= _SILENT_SECONDS:
        return f"{drain} has asked nothing for {seconds:.0f} s: its worker is frozen or cut off"
    return f"{drain} is at work and stores nothing: its worker's log says why"
