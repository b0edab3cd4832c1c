"""The decoders on what the fuzzer has found so far: its corpus, and the JSON cases."""

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from checks.hostile import oracle
from checks.hostile.cases import cases
from checks.hostile.oracle import depth, is_json, judge, kind_of
from checks.hostile.protocols import TARGETS, WrongError
from checks.hostile.seeds import seeds
from ingest.codecs import event_bodies, strict_json, validation
from ingest.errors import MalformedBodyError
from ingest.framing import inflate_in_steps
from ingest.http import request as http1
from ingest.protocols import records

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


def test_the_corpus_is_judged_right() -> None:
    """Every input of the corpus gets an answer that the oracle agrees with; together they reach every outcome."""
    outcomes = {kind_of(data) + " " + judge(data) for data in (path.read_bytes() for path in CORPUS)}
    assert {
        "J events", "J invalid", "J malformed", "J too_large", "N events", "N invalid", "N malformed", "N too_large",
        "G inflated", "G malformed", "G too_large", "H length", "H chunked", "H bad_request",
        "C chunks", "C cut", "C bad_request", "P events", "P nothing", "P malformed", "P too_large",
        "D inflated", "D malformed", "D plain",
    } <= outcomes  # fmt: skip


def test_the_corpus_is_small() -> None:
    assert 50 < len(CORPUS) < 500
    assert sum(path.stat().st_size for path in CORPUS) < 500_000


def test_the_seeds_are_judged_right() -> None:
    assert {judge(seed) for seed in seeds()} >= {
        "events",
        "invalid",
        "malformed",
        "inflated",
        "length",
        "chunked",
        "chunks",
        "nothing",
        "plain",
    }


def test_every_other_protocol_has_seeds() -> None:
    outcomes: dict[str, set[str]] = {}
    for seed in seeds():
        if seed[:1] == b"P":
            outcomes.setdefault(chr(seed[1]), set()).add(judge(seed))
    assert set(outcomes) == set(TARGETS)
    assert all("events" in found for found in outcomes.values())


@pytest.mark.parametrize(("name", "data"), list(cases()))
def test_the_oracle_knows_json(name: str, data: bytes) -> None:
    assert is_json(data) is (name[0] in "yi" or name.startswith(("n_deep_one", "n_deep_arrays_closed")))
    assert (depth(data) > strict_json.DEPTH_MAX) is name.startswith("n_deep")


def _refuses_deflate(data: bytes, coding: str, *rest: Any) -> Generator[None, None, bytes]:
    """`inflate_in_steps`, which never takes a body for deflate."""
    if coding == "deflate":
        raise MalformedBodyError("the body is not deflate")
    return (yield from inflate_in_steps(data, coding, *rest))


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (strict_json, "DEPTH_MAX", 3),  # JSON is refused as none
        (strict_json, "_refuse_constant", float),  # NaN is taken for JSON
        (validation, "_unstorable", lambda _: None),  # NUL is taken
        (event_bodies, "_ESCAPED_NUL", b"never"),
        (event_bodies, "are_kept", lambda _: True),  # a number that changes
        (event_bodies, "conflicts", lambda _: iter(())),  # two events of one id
        (event_bodies, "_SEVERITY", dict.fromkeys(("INFO", "info"), "WARN")),  # another event than was sent
        (http1, "_CODING_FIELD", "coding"),  # no chunks: smuggling
        (http1, "_NOT_REPEATED", frozenset({"host"})),  # the first of two lengths: smuggling
        (http1, "_check_host", lambda _, **__: None),  # a request without a Host
        (records, "_storable", lambda text: text),  # another protocol: NUL is stored
        (records, "SOURCE_CHARS_MAX", 1000),  # a source that is too long
        (records, "ATTRIBUTES_KEYS_MAX", 100),
        (oracle, "inflate_in_steps", _refuses_deflate),  # a text that was declared as deflate
        (http1, "_CHUNK_LINE", re.compile(rb"([0-9A-Fa-f]{1,8})[^\n]*\n")),  # chunks that others do not see
    ],
)
def test_the_oracle_finds_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, broken: object
) -> None:
    monkeypatch.setattr(where, name, broken)
    inputs = [*seeds(), *(path.read_bytes() for path in CORPUS)]
    assert any(_is_wrong(data) for data in inputs)


def _is_wrong(data: bytes) -> bool:
    try:
        judge(data)
    except WrongError:
        return True
    return False


def test_a_body_whose_chunks_take_turns_is_judged_to_its_end() -> None:
    assert judge(b"C" + b"1\r\na\r\n" * 3 * http1.CHUNKS_AT_ONCE + b"0\r\n\r\n") == "chunks"
