"""Names of metrics, settings, fields and codes consist of the words of the glossary, which names only what exists."""

import dataclasses
import re
from collections.abc import Iterable

import pytest

from checks.testbed.processes import ROOT
from ingest.health import document_of
from monitoring.metrics_table import groups
from pipeline.drain.report import DrainOutcome
from pipeline.health.judge import judge
from pipeline.names import AlarmCode, ControlEventKind, ProblemCode
from pipeline.settings import Settings
from pipeline.status import inputs_document
from support.health import BREAKER, HEALTHY, OVERRIDE

TEXT = (ROOT / "docs" / "glossary.md").read_text()

# Every field is present: an override holds, and consumption is paused.
INPUTS = dataclasses.replace(HEALTHY, override=OVERRIDE, pauses=(BREAKER,))
HEALTH = document_of(INPUTS, 300)
STATUS = inputs_document(INPUTS, judge(INPUTS))

METRICS = {metric.name for metrics in groups().values() for metric in metrics}
SETTINGS = {field.name.upper() for field in dataclasses.fields(Settings)}
FIELDS = set(HEALTH) | set(STATUS) | {"deadLetters", "deadLetterConflicts", "events"}
# Codes that users see: in `reasons`, in control events, and as the outcome of a drain.
CODES = {code.value for kind in (ProblemCode, AlarmCode, ControlEventKind, DrainOutcome) for code in kind}
NAMES = METRICS | SETTINGS | FIELDS | CODES


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the glossary."""
    section = TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def stem(word: str) -> str:
    """The singular of a word, roughly."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 2 and not word.endswith(("ss", "us")):
            return word.removesuffix(ending) + instead
    return word


def words(name: str) -> set[str]:
    """The words of a name in snake case, capitals or camel case, in the singular."""
    return {stem(part.lower()) for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


TERMS = [
    re.sub(r"\(.*?\)", "", row[0])
    for heading in ("Events and where they are", "Offsets", "Admission", "Consumption", "Health")
    for row in rows(heading)
]
PLAIN = [word for row in rows("Words in names") for word in row[0].split(", ")]
REPLACED = {row[0]: set(re.findall(r"`(\w+)`", row[2])) for row in rows("Words that new names do not use")}
KNOWN = {stem(word) for term in TERMS for word in re.findall("[a-z]+", term)} | {stem(word) for word in PLAIN}


def problems(names: Iterable[str]) -> list[str]:
    """What is wrong with these names, by the glossary."""
    found = []
    for name in sorted(names):
        for word in sorted(words(name)):
            if word in REPLACED:
                if name not in REPLACED[word]:
                    found.append(f"{name}: not {word}; see the glossary for the word to use")
            elif word not in KNOWN:
                found.append(f"{name}: {word} is not in the glossary")
    return found


def test_the_words_of_every_name_are_in_the_glossary() -> None:
    assert len(NAMES) > 100
    assert problems(NAMES) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sluice_ingest_permits", "permit is not in the glossary"),
        ("THROTTLE_SECONDS_MAX", "throttle is not in the glossary"),
        ("backlogSize", "backlog is not in the glossary"),
        ("sluice_floor_rate", "not floor"),
        ("LOG_ENTRIES_MIN", "not entry"),
    ],
)
def test_a_new_name_with_another_word_is_found(name: str, problem: str) -> None:
    [found] = problems([name])
    assert found.startswith(f"{name}: {problem}")


def test_no_word_has_two_meanings() -> None:
    terms = [part.strip() for term in TERMS for part in term.split(",")]
    assert sorted(terms) == sorted(set(terms))
    assert sorted(PLAIN) == sorted(set(PLAIN))
    of_terms, plain = {stem(word) for term in TERMS for word in re.findall("[a-z]+", term)}, {stem(w) for w in PLAIN}
    assert (of_terms & plain, of_terms & set(REPLACED), plain & set(REPLACED)) == (set(), set(), set())


def test_the_glossary_has_no_word_that_no_name_uses() -> None:
    used = {word for name in NAMES for word in words(name)}
    assert [word for word in PLAIN if stem(word) not in used] == []


def test_names_that_keep_a_replaced_word_exist_and_have_it() -> None:
    for word, names in REPLACED.items():
        assert names, word
        for name in names:
            assert name in NAMES, f"{name} no longer exists: remove it from the glossary"
            assert word in words(name), f"{name} does not have {word}"


def test_every_field_of_the_health_answer_is_in_the_glossary() -> None:
    assert [field for field in HEALTH if f"`{field}`" not in TEXT] == []


def test_names_in_the_glossary_exist() -> None:
    quoted = set(re.findall(r"`([A-Za-z_]+)`", TEXT))
    metrics = {name.removesuffix("_total") for name in quoted if name.startswith(("sluice_", "rate_limiter_"))}
    settings = {name for name in quoted if re.fullmatch("[A-Z]+_[A-Z_]+", name)}
    assert (sorted(metrics - METRICS), sorted(settings - SETTINGS)) == ([], [])
