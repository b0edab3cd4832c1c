"""The level of a request: by its header, and by its events."""

import pytest

from ingest.levels import level_of, level_of_priority
from pipeline.event import SEVERITIES, Event
from pipeline.names import Level


def event(severity: str) -> Event:
    return Event("c", severity, "m", "s", 1_700_000_000_000)


@pytest.mark.parametrize(
    ("urgency", "level"),
    list(enumerate([Level.ERROR] * 2 + [Level.WARN] + [Level.INFO] * 2 + [Level.DEBUG] * 3)),
)
def test_each_urgency_has_a_level(urgency: int, level: Level) -> None:
    assert level_of_priority(f"u={urgency}") is level


@pytest.mark.parametrize(
    "value",
    [
        "u=5, i",
        "i,u=5",
        "i=?0 ,\tu=5",
        " u=5 ",
        "u=5;x=1;y",
        "u=1, u=5",
        'a="x, u=1", u=5',
        "a=(1 2.5 tok);q=9, u=5",
        "a=(), b=:cHJl:, c=@-17, d=*t/x:y, u=5",
        'a="\\"\\\\", e=%"f%c3%bc", u=5',
        "a=-999999999999.999, u=5",
    ],
)
def test_the_urgency_is_a_member_of_a_structured_dictionary(value: str) -> None:
    assert level_of_priority(value) is Level.DEBUG


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "i",
        "u",
        "u=8",
        "u=-1",
        "u=05",
        "u=5.0",
        "u=?1",
        'u="5"',
        "u=(5)",
        "u=x",
        "U=5",
        "u = 5",
        "u=5,",
        ",u=5",
        "u=5 i",
        "u=5;",
        "u=5, a=",
        'u=5, a="x',
        "u=5, a=(1 2",
        "u=5, a=(1(2))",
        "u=5, \x7f",
        "u=5\u0663",
        "u=\u0665",
        "u=1, u=9",  # the last one counts, and it is none
    ],
)
def test_what_is_no_urgency_or_no_dictionary_is_ignored(value: str | None) -> None:
    assert level_of_priority(value) is None


def test_the_time_for_a_value_grows_with_its_length_only() -> None:
    for value in ("(" * 8000, "a=(" + " " * 8000, 'a="' + "\\" * 8000, "a;" * 4000, "a," * 4000, "a=(1" + " 1" * 4000):
        assert level_of_priority(value) is None


def test_every_severity_has_a_level_and_the_highest_of_a_body_counts() -> None:
    levels = [level_of([event(severity)]) for severity in SEVERITIES]
    assert levels == [Level.DEBUG, Level.DEBUG, Level.INFO, Level.WARN, Level.ERROR, Level.ERROR]
    assert level_of([event("DEBUG"), event("WARN"), event("INFO")]) is Level.WARN
