"""The event logs that were ever drained into the same place: events of a former log that are not stored are found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KnownLog:
    """An event log, as it was last seen."""

    log_id: str
    url: str  # EVENT_LOG_URL without its password
    name: str  # LOG_TOPIC on Kafka, the prefix of the keys on Redis
    ends: Mapping[int, int]  # partition -> offset of the next record that is appended
    seen_at: float  # when it was last seen, by the place's clock, which may be stepped: changes with each look at it
    age_seconds: float  # since then, by the same clock


class KnownLogs(Protocol):
    """Remembers event logs. Both methods raise SinkUnavailableError. Not for use by several threads at once."""

    def note(self, log_id: str, *, url: str, name: str, ends: Mapping[int, int]) -> None:
        """Remember the present event log and its ends."""

    def others(self, log_id: str, *, logs_max: int) -> list[KnownLog]:
        """Other logs, the last seen first."""
