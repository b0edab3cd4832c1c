"""Distinguishes a broken schema from broken events: too many dead letters in a row, or too many condemned records."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import PoisonedError
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings

# Records of a rolled-back batch that are kept for people to look at; they are written with the pause, once.
SAMPLE_RECORDS_MAX: Final = 20
SAMPLE_CHARS_MAX: Final = 200  # of a record's beginning, and of the reason for its refusal
# After this many stored records, one condemned record is no longer counted: a function may fail for a single odd
# record.
_FORGIVING_RECORDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that can't be stored: its index in the batch, and the reason."""

    index: int
    reason: str
    sqlstate: str | None  # None: it can't be decoded


class PoisonRun:
    """Counts dead letters over consecutive batches that each had too many of them.

    It counts over batches, because at a low rate no batch is large enough to contain `poison_run_records_max` of them.
    Condemned records are counted separately, even with good batches between them. What makes storing fail is an error
    in the set-up (for example a missing table of a trigger), which an operator can correct.
    """

    def __init__(self, settings: Settings) -> None:
        self._letters_max = settings.poison_run_records_max
        self._ratio_max = settings.poison_ratio_max
        self._letters = 0
        self._condemned_max = settings.poison_condemned_records_max
        self._condemned = 0.0

    def letters_left(self, records: int) -> int:
        """Number of letters that a batch of `records` may have without being poisoned."""
        return max(self._letters_max - self._letters, int(self._ratio_max * records))

    def check(self, letters: int, records: int) -> None:
        """Raise PoisonedError if the run becomes too long with this batch; the count then restarts."""
        if letters > self.letters_left(records):
            before, self._letters = self._letters, 0
            raise PoisonedError(
                f"{letters} of {records} records refused, after {before} in the batches before: "
                "the schema, not the data, is suspect"
            )

    def add(self, letters: int, records: int) -> None:
        """Count a committed batch."""
        self._letters = self._letters + letters if letters > self._ratio_max * records else 0
        self._condemned = max(0.0, self._condemned - records / _FORGIVING_RECORDS)

    def check_condemned(self, records: int, why: str) -> None:
        """Raise PoisonedError if there are too many records that make storing fail; the count then restarts."""
        if self._condemned + records > self._condemned_max:
            before, self._condemned = round(self._condemned), 0.0
            raise PoisonedError(
                f"storing a record failed each time, while PostgreSQL took other writes, after {before} such records "
                f"that are dead letters: the schema or a trigger, not the data, is suspect: {why}"
            )

    def add_condemned(self, records: int) -> None:
        """Count committed condemned records."""
        self._condemned += records


@contextlib.contextmanager
def evidence(
    log_id: str, expected_offset: int, batch: LogBatch, letters: Sequence[RejectedRecord], *, is_condemned: bool
) -> Iterator[None]:
    """Add the batch to a PoisonedError that leaves the body; see `poison_evidence`."""
    try:
        yield
    except PoisonedError as error:
        error.evidence = poison_evidence(log_id, expected_offset, batch, letters, is_condemned=is_condemned)
        raise


def poison_evidence(
    log_id: str, expected_offset: int, batch: LogBatch, letters: Sequence[RejectedRecord], *, is_condemned: bool
) -> dict[str, Any]:
    """A poisoned batch, for people: its records, how many were refused, and the beginning of some.

    `expected_offset` is the stored one; it is below the batch if the log declares a hole between them. `is_condemned`:
    the sink does not refuse the records as data; storing them fails.
    """
    shown: list[dict[str, Any]] = []
    for letter in letters[:SAMPLE_RECORDS_MAX]:
        content = batch.values[letter.index][: 4 * SAMPLE_CHARS_MAX].decode("utf-8", "backslashreplace")
        shown.append(
            {
                "offset": batch.offset + letter.index,
                "reason": letter.reason[:SAMPLE_CHARS_MAX],
                "sqlstate": letter.sqlstate,
                "content": content[:SAMPLE_CHARS_MAX],
            }
        )
    return {
        "logId": log_id,
        "expected": expected_offset,
        "first": batch.offset,
        "end": batch.next_offset,
        "refused": len(letters),
        "condemned": is_condemned,
        "sample": shown,
    }
