"""The age of what another clock has dated."""

from pipeline.flow.age import Age


def test_at_the_first_look_the_other_clock_counts() -> None:
    age = Age()
    assert age.of("a", 12.0, now=100.0) == 12.0
    assert age.of("a", 12.5, now=100.5) == 12.5


def test_from_then_on_the_readers_own_clock_counts() -> None:
    age = Age()
    age.of("a", 0.0, now=100.0)
    assert age.of("a", 3600.0, now=101.0) == 1.0
    assert age.of("a", -3600.0, now=102.0) == 2.0
    assert age.now(103.0) == 3.0


def test_a_new_version_is_no_older_than_the_look_before() -> None:
    age = Age()
    age.of("a", 0.0, now=100.0)
    assert age.of("b", 3600.0, now=101.0) == 1.0
    assert age.of("b", 0.0, now=103.0) == 3.0
    assert age.of("c", 0.5, now=105.0) == 0.5


def test_what_the_reader_made_itself_is_new() -> None:
    age = Age()
    age.begin("a", now=100.0)
    assert age.of("a", 3600.0, now=101.0) == 1.0


def test_what_lies_in_the_future_is_new() -> None:
    assert Age().of("a", -5.0, now=100.0) == 0.0
