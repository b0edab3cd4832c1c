"""How much is stored at once, and which batch is the culprit: pure decisions."""

from dataclasses import replace

import pytest

from pipeline.errors import SinkUnavailableError
from pipeline.pace import Pace
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings

ROW = SinkUnavailableError("no such function")
LOCK = SinkUnavailableError("timed out waiting for a lock", is_a_row_possible=False)


@pytest.fixture
def pace() -> Pace:
    return Pace(replace(Settings(), breaker_failures_max=5, drain_batch_records_max=5000))


def fail(pace: Pace, times: int, error: SinkUnavailableError = ROW, offset: int = 7) -> list[int]:
    """Fail so often with what it allows, asking PostgreSQL where it wants that; the sizes that were tried."""
    sizes = []
    for _ in range(times):
        if pace.must_ask(offset):
            pace.asked()
        sizes.append(pace.records)
        pace.failed(offset, pace.records, error)
    return sizes


def test_four_failures_lead_from_a_whole_batch_to_one_record_which_fails_as_often_as_opens_the_breaker(
    pace: Pace,
) -> None:
    assert fail(pace, 5) == [5000, 625, 78, 9, 1]
    # A server that is killed again and again fails with whatever is stored: one failure alone says nothing
    pace.asked()
    assert not pace.is_culprit(7)
    assert fail(pace, 4) == [1, 1, 1, 1]
    assert not pace.is_culprit(7)  # PostgreSQL was not asked since the last one
    assert pace.must_ask(7)
    pace.asked()
    assert pace.is_culprit(7)
    assert not pace.is_culprit(8)


def test_a_single_record_has_to_fail_as_often_as_opens_the_breaker(pace: Pace) -> None:
    pace.records = 1
    for _ in range(4):
        fail(pace, 1)
        pace.asked()
        assert not pace.is_culprit(7)
    fail(pace, 1)
    pace.asked()
    assert pace.is_culprit(7)


def test_failures_that_no_row_causes_begin_the_count_anew(pace: Pace) -> None:
    pace.records = 1
    fail(pace, 4)
    fail(pace, 1, LOCK)
    fail(pace, 4)
    pace.asked()
    assert not pace.is_culprit(7)


def test_a_lock_makes_no_record_a_culprit_and_no_batch_smaller(pace: Pace) -> None:
    assert fail(pace, 20, LOCK) == [5000] * 20
    pace.records = 1
    fail(pace, 20, LOCK)
    pace.asked()
    assert not pace.is_culprit(7)


def test_failures_elsewhere_are_counted_anew(pace: Pace) -> None:
    fail(pace, 5)
    fail(pace, 1, offset=8)
    assert not pace.must_ask(8)
    assert not pace.must_ask(7)


def test_it_grows_again_and_only_as_far_as_careful_storing_may_go_while_that_is_needed(pace: Pace) -> None:
    fail(pace, 5)
    grown = []
    for result in [StoreResult(stored=1)] * 3 + [StoreResult(stored=9, dead_lettered=1)] * 8 + [StoreResult()] * 5:
        pace.stored(result)
        grown.append(pace.records)
    assert grown == [2, 4, 8, 16, 32, 64, 128, 256, 500, 500, 500, 1000, 2000, 4000, 5000, 5000]
    assert not pace.must_ask(7)
    pace.refused()
    assert pace.records == 500


def test_more_than_one_record_is_no_culprit_however_often_it_fails() -> None:
    # Given batches so large that five failures do not lead to one record
    pace = Pace(replace(Settings(), breaker_failures_max=5, drain_batch_records_max=100_000))
    assert fail(pace, 5)[-1] == 24
    pace.asked()
    assert not pace.is_culprit(7)
