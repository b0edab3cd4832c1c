"""The known event logs in PostgreSQL."""

import json
from collections.abc import Mapping

from pipeline.ports.known_logs import KnownLog
from pipeline.sink.queries import query
from pipeline.sink.session import Session


class PostgresKnownLogs:
    """Known event logs over a connection that other stores may share."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def note(self, log_id: str, *, url: str, name: str, ends: Mapping[int, int]) -> None:
        values = {"log_id": log_id, "url": url, "name": name, "ends": json.dumps(ends)}
        self._session.count(query("note_log"), values)

    def others(self, log_id: str, *, logs_max: int) -> list[KnownLog]:
        limits = {"log_id": log_id, "logs_max": logs_max}
        return [
            KnownLog(other, url, name, {int(partition): int(end) for partition, end in ends.items()}, seen_at, age)
            for other, url, name, ends, seen_at, age in self._session.rows(query("former_logs"), limits)
        ]
