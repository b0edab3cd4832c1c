"""Dead letters: rejected records as the event sink keeps them."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeadLetterCounts:
    """How many dead letters wait for a replay."""

    open: int
    conflicts: int  # of `open`: their ids are stored with other content, so no replay can store them


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The outcome of the dead letters that a replay tried."""

    stored: int = 0
    repeated: int = 0  # already stored with the same content: also done
    conflicting: int = 0  # their ids are stored with other content: they stay dead letters
    refused: int = 0  # refused again: they stay dead letters, with the new reason


class DeadLetters(Protocol):
    """Dead letters of an event sink, which writes them itself with their batch. Not for use by several threads."""

    def count(self) -> DeadLetterCounts:
        """How many dead letters wait for a replay. Raises SinkUnavailableError."""

    def between(self, log_id: str, partition: int, first: int, end: int) -> dict[int, str]:
        """Reasons of the dead letters from offset `first` up to `end`, by offset. Raises SinkUnavailableError."""

    def replay(self, *, limit: int, dry_run: bool = False) -> ReplayResult:
        """Try to store up to `limit` dead letters, and mark them, in one transaction.

        Those that were not tried for the longest time come first, so that repeated calls reach all of them. Concurrent
        replays take different ones. `dry_run` does all of it and rolls back. Raises SinkUnavailableError,
        SinkContentionError. Raises PermanentError if the sink has no replay.
        """
