"""Which dead letters are too many; see tests/contract/test_sink.py for what follows from it."""

from dataclasses import replace

import pytest

from pipeline.errors import PoisonedError
from pipeline.settings import Settings
from pipeline.sink.poison import PoisonRun


def condemn(run: PoisonRun) -> None:
    run.check_condemned(1, "no such function")
    run.add_condemned(1)


def test_ten_thousand_good_records_forgive_one_that_made_storing_fail() -> None:
    run = PoisonRun(replace(Settings(), poison_condemned_records_max=2))
    for _ in range(10):
        condemn(run)
        run.add(0, 10_000)
    condemn(run)
    run.add(0, 9_000)
    condemn(run)
    run.add(0, 900)
    with pytest.raises(PoisonedError, match="after 1 such records"):
        condemn(run)
    condemn(run)  # for whoever resumes it the count begins anew
