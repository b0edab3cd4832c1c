"""Whether two wall clocks differ, told from looks at them."""

import pytest

from pipeline.flow.clocks import Look, difference_words


@pytest.mark.parametrize(
    ("time", "asked_at", "answered_at", "ahead"),
    [
        (100.0, 100.0, 100.0, None),
        (101.0, 100.0, 100.0, None),  # no more than the limit
        (101.5, 100.0, 100.0, 1.5),
        (98.5, 100.0, 100.0, -1.5),
        (102.0, 100.0, 101.0, None),  # 1.5 s ahead of the middle; the look took a second
        (104.0, 100.0, 101.0, 3.5),
        (96.0, 100.0, 101.0, -4.5),
    ],
)
def test_a_clock_is_ahead_where_neither_the_limit_nor_the_look_explains_it(
    time: float, asked_at: float, answered_at: float, ahead: float | None
) -> None:
    assert Look(time, asked_at, answered_at).ahead_seconds(beyond=1.0) == ahead


def test_two_clocks_are_compared_by_the_lookers_monotonic_clock() -> None:
    # Given two looks, ten seconds apart by a clock that counts from anywhere
    first, second = Look(5000.0, 10.0, 10.0), Look(5010.0, 20.0, 20.0)
    assert second.ahead_of(first, beyond=1.0) is None
    assert Look(5013.0, 20.0, 20.0).ahead_of(first, beyond=1.0) == 3.0
    assert Look(5007.0, 20.0, 20.0).ahead_of(first, beyond=1.0) == -3.0
    # And what both looks took is allowed for
    assert Look(5013.0, 20.0, 21.5).ahead_of(Look(5000.0, 10.0, 11.5), beyond=1.0) is None


def test_a_difference_is_told_with_its_direction() -> None:
    assert difference_words(3.21) == "3.2 s ahead of"
    assert difference_words(-1234.5) == "1,234.5 s behind"
