"""Counts what became of events."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why an event was dropped."""

    QUEUE_FULL = "queue_full"  # the queue had no room, and the spill folder, if there is one, was full or failed
    REJECTED = "rejected"  # the server will never accept it
    CLOSED = "closed"  # emitted after the client was closed
    UNSENT = "unsent"  # still in the queue at the end
    DAMAGED = "damaged"  # a line of a spill file that can't be read


@dataclass(frozen=True, slots=True)
class Drop:
    """Events of one severity that were dropped for one reason."""

    severity: str
    reason: Reason
    count: int


@dataclass(frozen=True)
class Stats:
    """Counts of events since the client was made, or since the fork that made its process.

    Every event is in exactly one place: emitted + adopted = accepted + rejected + dropped + waiting + spilled.
    """

    emitted: int
    adopted: int  # from spill files of processes that have ended
    accepted: int  # durable at the server
    repeated: int  # accepted events that were sent more than once, because the first outcome was unknown
    rejected: int
    dropped: int  # by all reasons but `rejected`
    waiting: int  # in memory
    spilled: int  # in spill files
    drops: Mapping[tuple[str, Reason], int]  # by severity and reason, `rejected` too
    last_error: str  # why the last request was not accepted; empty after one that was


@dataclass(frozen=True)
class Summary:
    """What became of the events of a client that was closed."""

    stats: Stats
    unsent: int  # neither accepted nor in spill files: lost

    def __str__(self) -> str:
        parts = [f"{self.unsent} events were not sent"]
        if self.stats.spilled:
            parts.append(f"{self.stats.spilled} events are in spill files and will be sent at the next start")
        if self.stats.last_error:
            parts.append(f"last error: {self.stats.last_error}")
        return "; ".join(parts)


class Counters:
    """The counts. Not safe for threads: the core's lock protects it."""

    def __init__(self) -> None:
        self.emitted = 0
        self.adopted = 0
        self.accepted = 0
        self.repeated = 0
        self.last_error = ""
        self._drops: Counter[tuple[str, Reason]] = Counter()
        self._unreported: Counter[tuple[str, Reason]] = Counter()

    def drop(self, severity: str, reason: Reason, count: int = 1) -> None:
        """Count dropped events."""
        self._drops[severity, reason] += count
        self._unreported[severity, reason] += count

    @property
    def has_unreported(self) -> bool:
        """Whether events were dropped since the last `unreported`."""
        return bool(self._unreported)

    def unreported(self) -> list[Drop]:
        """The drops since the last call, the lowest severity first."""
        found, self._unreported = self._unreported, Counter()
        return [Drop(severity, reason, count) for (severity, reason), count in found.items()]

    def stats(self, *, waiting: int, spilled: int) -> Stats:
        """All counts. `waiting` and `spilled` are known to others."""
        rejected = sum(count for (_, reason), count in self._drops.items() if reason is Reason.REJECTED)
        return Stats(
            emitted=self.emitted,
            adopted=self.adopted,
            accepted=self.accepted,
            repeated=self.repeated,
            rejected=rejected,
            dropped=self._drops.total() - rejected,
            waiting=waiting,
            spilled=spilled,
            drops=dict(self._drops),
            last_error=self.last_error,
        )
