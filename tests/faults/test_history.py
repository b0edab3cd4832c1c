"""The history on disk: what is read back of clients that ended in any way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checks.soak.content import encoded
from checks.soak.history import EventNote, HistoryError, HistoryWriter, Outcome, digest, outcome_of, read_histories
from checks.testbed.processes import ROOT
from checks.testbed.waiting import WAIT_SECONDS_MAX, eventually
from stack.servers import free_port

EVENT = EventNote("c0-1", "abc", True)


def test_an_event_is_as_its_best_outcome_says(tmp_path: Path) -> None:
    # Given an event that was refused, then had no answer, then was acknowledged
    writer = HistoryWriter(tmp_path / "a.jsonl")
    for number, status in enumerate(["429", "no answer: TimeoutError", "202"]):
        writer.sent(number, 10.0 + number, [EVENT])
        writer.told(number, 10.5 + number, status)
    writer.close()
    # Then it is acknowledged, and two requests may have brought it into the log
    history = read_histories([tmp_path / "a.jsonl"])
    assert history.events["c0-1"].outcome is Outcome.ACKED
    assert history.events["c0-1"].carried == 2
    assert [request.answered_at for request in history.requests] == [10.5, 11.5, 12.5]


def test_a_request_without_an_outcome_is_indeterminate_and_a_torn_line_is_none(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "a.jsonl")
    writer.sent(0, 10.0, [EVENT])
    writer.sent(1, 11.0, [EventNote("c0-2", "def", False)])
    writer.told(1, 11.5, "202")
    writer.close()
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"r":0,"t":12.0,"s":"20')
    history = read_histories([tmp_path / "a.jsonl"])
    assert history.events["c0-1"].outcome is Outcome.INDETERMINATE
    assert history.events["c0-2"].outcome is Outcome.ACKED


def test_damage_elsewhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"r":0,"t":1\n{"r":1,"t":2.0,"e":[]}\n')
    with pytest.raises(HistoryError, match="damaged"):
        read_histories([tmp_path / "a.jsonl"])


def test_a_key_with_two_contents_is_the_harness_own_defect(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "a.jsonl")
    writer.sent(0, 1.0, [EVENT])
    writer.sent(1, 1.0, [EVENT._replace(digest="other")])
    writer.close()
    with pytest.raises(HistoryError, match="two contents"):
        read_histories([tmp_path / "a.jsonl"])


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("202", Outcome.ACKED),
        ("429", Outcome.REFUSED),
        ("503 unavailable", Outcome.REFUSED),
        ("no connection", Outcome.REFUSED),
        ("503 indeterminate", Outcome.INDETERMINATE),
        ("no answer: TimeoutError", Outcome.INDETERMINATE),
    ],
)
def test_what_a_status_means(status: str, outcome: Outcome) -> None:
    assert outcome_of(status) is outcome


def test_a_digest_tells_contents_apart_but_not_the_order_of_attributes() -> None:
    base = digest("c", "INFO", "m", "s", 1, attributes={"a": 1, "b": "x"})
    assert base == digest("c", "INFO", "m", "s", 1, attributes={"b": "x", "a": 1})
    others = [
        digest("d", "INFO", "m", "s", 1, attributes={"a": 1, "b": "x"}),
        digest("c", "WARN", "m", "s", 1, attributes={"a": 1, "b": "x"}),
        digest("c", "INFO", "n", "s", 1, attributes={"a": 1, "b": "x"}),
        digest("c", "INFO", "m", "s", 2, attributes={"a": 1, "b": "x"}),
        digest("c", "INFO", "m", "s", 1, attributes={"a": True, "b": "x"}),
        digest("c", "INFO", "m", "s", 1, attributes=None),
    ]
    assert len({base, *others}) == 7


def test_bodies_come_in_all_forms() -> None:
    forms = {tuple(sorted(encoded([{"a": 1}], number)[1].items())) for number in range(60)}
    assert len(forms) == 6  # object or array under either name, or NDJSON; plain or gzipped


def test_a_killed_client_leaves_what_it_was_about_to_send(tmp_path: Path) -> None:
    # Given a client of an address where nobody answers, killed in the middle
    path = tmp_path / "client.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "checks.soak.client", "--ports", str(free_port()), "--name", "c0"),
            *("--history", str(path), "--rate", "2000", "--seed", "1"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: path.exists() and path.stat().st_size >= 20_000, "the client writes a history")
    finally:
        process.kill()
        process.wait(WAIT_SECONDS_MAX)
    # Then its history can be read, and holds each event that it ever made a request of
    history = read_histories([path])
    first = json.loads(path.read_bytes().split(b"\n", 1)[0])
    assert {event[0] for event in first["e"]} <= set(history.events)
    assert {sent.outcome for sent in history.events.values()} <= {Outcome.REFUSED, Outcome.INDETERMINATE}
    assert {request.status for request in history.requests} <= {"no connection", "client killed"}
