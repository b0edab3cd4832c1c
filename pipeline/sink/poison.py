"""Tells a broken schema from broken events: too many dead letters in a row."""

from collections.abc import Iterable
from typing import Any, Final

from pipeline.errors import PoisonedError
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings

# Of a batch that is rolled back this much is kept for people to look at; it is written with the pause, once.
SAMPLE_RECORDS_MAX: Final = 20
SAMPLE_CHARS_MAX: Final = 200  # of a record's beginning, and of the reason why it was refused


class PoisonRun:
    """Dead letters in a row of batches that each had too many of them.

    Counted over batches, since at a low rate none is large enough to hold `poison_run_records_max` of them.
    """

    def __init__(self, settings: Settings) -> None:
        self._letters_max = settings.poison_run_records_max
        self._ratio_max = settings.poison_ratio_max
        self._letters = 0

    def letters_left(self, records: int) -> int:
        """Letters that a batch of `records` may have without being poisoned."""
        return max(self._letters_max - self._letters, int(self._ratio_max * records))

    def check(self, letters: int, records: int) -> None:
        """Raise PoisonedError where the run becomes too long with this batch; it begins anew then."""
        if letters > self.letters_left(records):
            before, self._letters = self._letters, 0
            raise PoisonedError(
                f"{letters} of {records} records refused, after {before} in the batches before: "
                "the schema, not the data, is suspect"
            )

    def add(self, letters: int, records: int) -> None:
        """Count a batch that was committed."""
        self._letters = self._letters + letters if letters > self._ratio_max * records else 0


def poison_evidence(
    log_id: str, batch: LogBatch, refused: int, sample: Iterable[tuple[int, str, str | None]]
) -> dict[str, Any]:
    """A poisoned batch for people: which records it has, how many were refused, and the beginning of some.

    `sample` gives (index in the batch, reason, SQLSTATE) of refused records.
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
        "first": batch.offset,
        "end": batch.next_offset,
        "refused": refused,
        "sample": shown,
    }
