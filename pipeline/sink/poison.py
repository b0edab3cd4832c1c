"""Distinguishes a broken schema from broken events: too many dead letters in a row, or too many condemned records."""

from collections.abc import Iterable
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


def poison_evidence(
    log_id: str,
    expected_offset: int,
    batch: LogBatch,
    refused: int,
    sample: Iterable[tuple[int, str, str | None]],
    *,
    is_condemned: bool,
) -> dict[str, Any]:
    """A poisoned batch, for people: its records, how many were refused, and the beginning of some.

    `expected_offset` is the stored one; it is below the batch if the log declares a hole between them. `sample` has
    (index in the batch, reason, SQLSTATE) of refused records. `is_condemned`: PostgreSQL does not refuse them as data;
    storing them fails.
    """
    shown: list[dict[str, Any]] = []
    for index, reason, sqlstate in sample:
        if len(shown) == SAMPLE_RECORDS_MAX:
            break
        content = batch.values[index][: 4 * SAMPLE_CHARS_MAX].decode("utf-8", "backslashreplace")
        shown.append(
            {
                "offset": batch.offset + index,
                "reason": reason[:SAMPLE_CHARS_MAX],
                "sqlstate": sqlstate,
                "content": content[:SAMPLE_CHARS_MAX],
            }
        )
    return {
        "logId": log_id,
        "expected": expected_offset,
        "first": batch.offset,
        "end": batch.next_offset,
        "refused": refused,
        "condemned": is_condemned,
        "sample": shown,
    }
