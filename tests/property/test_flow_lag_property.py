"""Properties of the lag that hold for any offsets."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.flow.lag import partition_lag

offsets = st.integers(0, 1 << 53)
maybe = st.none() | offsets


@given(begin=offsets, held=offsets, consumed=maybe)
def test_lag_lies_between_nothing_and_everything(begin: int, held: int, consumed: int | None) -> None:
    assert 0 <= partition_lag(begin, begin + held, consumed) <= held


@given(begin=offsets, held=offsets, stored=offsets, more=offsets)
def test_storing_more_never_raises_the_lag(begin: int, held: int, stored: int, more: int) -> None:
    assert partition_lag(begin, begin + held, stored + more) <= partition_lag(begin, begin + held, stored)


@given(begin=offsets, held=offsets, stored=offsets, more=offsets)
def test_what_is_appended_is_lag(begin: int, held: int, stored: int, more: int) -> None:
    end = begin + held
    before = partition_lag(begin, end, min(stored, end))
    assert partition_lag(begin, end + more, min(stored, end)) == before + more
