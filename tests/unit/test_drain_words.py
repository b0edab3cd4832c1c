"""What a drain task says to Flower: those that moved nothing are named, so that the others are found."""

import pytest

from pipeline.drain.report import DrainOutcome, DrainReport
from tasks.drain import drain_words


def report(partition: int = 0, outcome: DrainOutcome = DrainOutcome.FINISHED, **counts: int) -> DrainReport:
    return DrainReport(partition, outcome, **counts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ([report()], "no work"),
        ([report(outcome=DrainOutcome.BUSY)], "no work: another drain runs"),
        ([report(outcome=DrainOutcome.PAUSED)], "no work: PAUSED"),
        ([report(outcome=DrainOutcome.BREAKER_OPEN)], "no work: breaker open"),
        ([report(stored=1200)], "1,200 stored"),
        ([report(0, stored=1200), report(1, stored=30, dead_lettered=2)], "1,230 stored, 2 dead letters"),
        ([report(0, stored=5), report(1, DrainOutcome.PAUSED)], "5 stored: PAUSED"),
        ([report(repeated=3, conflicting=1)], "3 stored before, 1 conflicts"),
        ([report(stored=7, outcome=DrainOutcome.SINK_UNAVAILABLE)], "7 stored: sink away"),
        ([report(outcome=DrainOutcome.BUSY), report(1)], "no work"),
    ],
)
def test_words(reports: list[DrainReport], words: str) -> None:
    assert drain_words(reports) == words
