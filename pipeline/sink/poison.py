"""Tells a broken schema from broken events: too many dead letters in a row."""

from pipeline.errors import PoisonedError
from pipeline.settings import Settings


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
