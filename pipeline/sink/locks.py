"""Locks of partitions, and the sessions that hold a lock that storing waits for, in words for operators."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, Final

from pipeline.clock import Clock
from pipeline.errors import SinkContentionError, SinkUnavailableError
from pipeline.event_text import clock_time
from pipeline.sink.queries import query
from pipeline.sink.rows import printable
from pipeline.sink.session import LockedError, Row, Session

# Sessions named in one reason; the first ones are those that block the others.
_HOLDERS_MAX = 2
# PostgreSQL frees the lock of a session that has ended a moment later, on a busy machine after seconds.
_FREED_SECONDS_MAX: Final = 5.0
_FREED_POLL_SECONDS: Final = 0.1


def lock_key(log_id: str, partition: int) -> int:
    """The key of a partition's advisory lock: 64 bits, signed, the same in every process and version."""
    digest = hashlib.blake2b(f"sluice drain {log_id} {partition}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def take_lock(cursor: Any, clock: Clock, key: int) -> bool:
    """Take an advisory lock for this session, also if a session that held it has only just ended."""
    deadline = clock.monotonic() + _FREED_SECONDS_MAX
    while True:
        cursor.execute(query("try_lock"), {"key": key})
        if cursor.fetchone()[0]:
            return True
        if clock.monotonic() >= deadline:
            return False
        clock.sleep(_FREED_POLL_SECONDS)


@contextlib.contextmanager
def naming_holders(session: Session) -> Iterator[None]:
    """Add the lock and its holders to a LockedError that leaves the body, if PostgreSQL can name them."""
    try:
        yield
    except LockedError as error:
        holders = lock_holders(session)
        if not holders:
            raise
        raise LockedError(f"timed out waiting for a lock: {holders}") from error


def lock_holders(session: Session) -> str:
    """The sessions that block a drain's writes, in words; empty if there is none any more, or PostgreSQL fails."""
    try:
        found = session.rows(query("lock_holders"))
    except (SinkUnavailableError, SinkContentionError):
        return ""
    words = [_holder(row) for row in found[:_HOLDERS_MAX]]
    if len(found) > _HOLDERS_MAX:
        words.append(f"and {len(found) - _HOLDERS_MAX} more")
    return "; ".join(words)


def _holder(row: Row) -> str:
    pid, application, user, state, statement, since, relation, mode = row
    what = f"{mode} on {relation}" if relation is not None else "what it waits for"
    when = f" since {clock_time(since)}" if since is not None else ""
    idle = ", idle in its transaction" if state.startswith("idle in transaction") else ""
    said = " ".join(printable(statement).split())
    return f"pid {pid} ({application or user or 'no name'}) has {what}{when}{idle}: {said}"
