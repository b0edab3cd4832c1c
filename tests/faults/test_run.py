"""What a run makes of faults that do not take effect, of events that are not sent, and of a slow recovery."""

import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from checks.soak import catalog
from checks.soak.__main__ import main
from checks.soak.catalog import Planned
from checks.soak.fault import Effect, Fault
from checks.soak.report import as_markdown
from checks.soak.rig import Options, Rig
from checks.soak.run import Done, Result, Verdict, _Run
from checks.testbed.waiting import wait_until


class _VictimIsAway(Fault):
    name = "victim.away"

    def inject(self, rig: Rig) -> None:
        rig.down.add(cast("Any", "the victim"))
        raise psutil.NoSuchProcess(4711)

    def repair(self, rig: Rig) -> None:
        pytest.fail("nothing was broken")

    def effect(self, rig: Rig) -> Effect:
        return Effect(True, "it says so")


def test_a_fault_that_cannot_be_made_is_said_and_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setitem(catalog.FAULTS, "victim.away", _VictimIsAway)
    planned = Planned("victim.away", gap_seconds=0.0, share=0.0, hasty=False, seed=random.getrandbits(8))
    rig = SimpleNamespace(down=set())
    result = Result(Options("redis", tmp_path, 1, 100.0), [planned])
    done = _Run(cast("Any", rig), result, 60.0, lambda _: None)._carry_out(planned)
    result.done.append(done)
    assert "4711" in (done.skipped or "")
    assert result.hits == 0
    assert rig.down == set(), "what does not run would never be started again"
    assert "| victim.away | 1 | 0 | | | skipped: it could not be made" in as_markdown(result)


def _ended(folder: Path, *, hits: int, misses: int = 0, impossible: int = 0, sent: int = 100) -> Result:
    """A run with so many faults of each kind, in which 100 events were asked for."""
    planned = Planned("beat.kill", gap_seconds=0.0, share=0.0, hasty=False, seed=1)
    done = [
        *(Done(planned, 0.0, Effect(True, "gone")) for _ in range(hits)),
        *(Done(planned, 0.0, Effect(False, ""), skipped="skipped: its victim was away") for _ in range(misses)),
        *(
            Done(planned, 0.0, Effect(False, ""), skipped="skipped: no tmpfs", impossible=True)
            for _ in range(impossible)
        ),
    ]
    result = Result(Options("redis", folder, 1, 100.0), [planned] * len(done), events_min=100, done=done)
    result.found["events sent"] = sent
    return result


def test_a_run_whose_faults_took_effect_is_proof(tmp_path: Path) -> None:
    for hits, misses in ((59, 1), (60, 0), (498, 2), (9, 1), (1, 0)):
        assert _ended(tmp_path, hits=hits, misses=misses).verdict is Verdict.KEPT


@pytest.mark.parametrize(("hits", "misses"), [(1, 499), (8, 2), (449, 51), (0, 1)])
def test_a_run_whose_faults_took_no_effect_is_no_proof(tmp_path: Path, hits: int, misses: int) -> None:
    result = _ended(tmp_path, hits=hits, misses=misses)
    assert result.verdict is Verdict.NOT_PROVEN
    assert "NOT PROVEN" in as_markdown(result)
    assert f"- {hits} of {hits + misses} faults took effect, which is less than 90%" in as_markdown(result)


def test_faults_that_this_machine_cannot_make_are_not_expected_but_said(tmp_path: Path) -> None:
    result = _ended(tmp_path, hits=9, misses=1, impossible=30)
    assert result.verdict is Verdict.KEPT
    assert "9 of 10 faults took effect; 30 more were left out" in as_markdown(result)


def test_a_message_of_several_lines_is_one_cell_of_the_table(tmp_path: Path) -> None:
    result = _ended(tmp_path, hits=1)
    result.done[0].effect = Effect(True, "6 backends waited: canceled\n")
    result.done[0].note = "a | b"
    assert "| 6 backends waited: canceled (a \\| b) |" in as_markdown(result)


def test_a_run_of_nothing_but_impossible_faults_is_no_proof(tmp_path: Path) -> None:
    result = _ended(tmp_path, hits=0, impossible=3)
    assert result.verdict is Verdict.NOT_PROVEN
    assert "no fault was planned that can be made" in as_markdown(result)


def test_fewer_events_than_asked_for_are_no_proof(tmp_path: Path) -> None:
    result = _ended(tmp_path, hits=10, sent=99)
    assert result.verdict is Verdict.NOT_PROVEN
    assert "- 99 events were sent, and 100 were asked for" in as_markdown(result)


def test_a_broken_promise_is_broken_however_little_was_tried(tmp_path: Path) -> None:
    result = _ended(tmp_path, hits=1, misses=499, sent=1)
    result.violations.append("an event is gone")
    assert result.verdict is Verdict.BROKEN
    assert "BROKEN" in as_markdown(result)


@pytest.mark.parametrize(("verdict", "status"), [("kept", 0), ("broken", 1), ("not proven", 2)])
def test_the_exit_status_tells_the_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdict: str, status: int
) -> None:
    result = _ended(tmp_path, hits=1, sent=99 if verdict == "not proven" else 100)
    result.violations += ["an event is gone"] if verdict == "broken" else []
    monkeypatch.setattr("checks.soak.__main__.run", lambda *_, **__: result)
    assert main(["--out", str(tmp_path / "out"), "--home", str(tmp_path / "home")]) == status
    assert json.loads((tmp_path / "out" / "redis-1-1.json").read_text())["verdict"] == verdict


class _Mended(Fault):
    name = "mended"
    seconds = (0.0, 0.0)

    def inject(self, rig: Rig) -> None:
        cast("Any", rig).story.append("inject")

    def repair(self, rig: Rig) -> None:
        cast("Any", rig).story.append("repair")

    def effect(self, rig: Rig) -> Effect:
        return Effect(True, "it was made")


class _Prepared(_Mended):
    """It may be made only after longer than it lasts."""

    name = "prepared"
    seconds = (0.1, 0.1)

    def prepare(self, rig: Rig) -> None:
        until = time.monotonic() + 0.3
        wait_until(lambda: time.monotonic() > until, "it may be made")
        cast("Any", rig).prepared_at = time.time()

    def look(self, rig: Rig) -> None:
        if "look" not in cast("Any", rig).story:
            cast("Any", rig).story.append("look")


def test_the_time_of_a_fault_runs_from_when_it_may_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.FAULTS, "prepared", _Prepared)
    rig = _Slow(asked_max=0)
    result = _gone(monkeypatch, rig, [Planned("prepared", 0.0, share=0.0, hasty=False, seed=1)], 60.0)
    assert rig.story[:3] == ["inject", "look", "repair"]
    assert result.windows[0].start >= cast("Any", rig).prepared_at


class _Slow:
    """A rig that is not well until it was asked so many times; it keeps a story of what was done to it."""

    def __init__(self, asked_max: float) -> None:
        self.down: set[Any] = set()
        self.story: list[str] = []
        self.clients = [SimpleNamespace(signal=lambda _: self.story.append("hurry"))]
        self.options = SimpleNamespace(rate=100.0)
        self.sent = 0
        self._asked, self._asked_max = 0, asked_max

    def counts(self) -> dict[str, int]:
        self.sent += 100 if "hurry" in self.story else 0
        return {"sent": self.sent, "acked": self.sent}

    def stop_clients(self) -> None:
        self.story.append("stop clients")

    def log_ends(self) -> dict[tuple[str, int], int]:
        return {("log", 0): 1}

    def behind(self, _: object) -> None:
        return None

    def problem(self) -> str | None:
        self._asked += 1
        if self._asked <= self._asked_max:
            return "the breaker is open"
        self.story.append("well")
        return None


def _gone(monkeypatch: pytest.MonkeyPatch, rig: _Slow, plan: list[Planned], seconds_max: float) -> Result:
    monkeypatch.setitem(catalog.FAULTS, "mended", _Mended)
    monkeypatch.setitem(catalog.FAULTS, "victim.away", _VictimIsAway)
    result = Result(Options("redis", Path(), 1, 100.0), plan, events_min=100)
    _Run(cast("Any", rig), result, seconds_max, lambda _: None).run()
    return result


@pytest.mark.parametrize("hasty", [True, False])
def test_recovery_from_the_last_fault_is_waited_for_before_the_rest_is_sent(
    monkeypatch: pytest.MonkeyPatch, hasty: bool
) -> None:
    # Given a last fault after which the system is well after some looks
    rig = _Slow(asked_max=2)
    planned = Planned("mended", gap_seconds=0.0, share=0.0, hasty=hasty, seed=1)
    # When it is made
    result = _gone(monkeypatch, rig, [planned], 60.0)
    # Then that is seen while clients go on as before, and the end is drained in its own time
    assert rig.story == ["inject", "repair", "well", "hurry", "stop clients", "well"]
    assert result.done[-1].recovered_seconds is not None
    assert result.recovery.seconds is not None


def test_only_the_last_hasty_fault_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = Planned("mended", gap_seconds=0.0, share=0.0, hasty=True, seed=1)
    result = _gone(monkeypatch, _Slow(asked_max=2), [planned, planned], 60.0)
    assert [one.recovered_seconds is None for one in result.done] == [True, False]


@pytest.mark.parametrize("last", ["mended", "victim.away"])
def test_a_last_fault_that_is_not_recovered_from_in_time_is_noted(monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    # Given a system that is well only long after the last repair, whatever the drain at the end takes
    planned = Planned(last, gap_seconds=0.0, share=0.0, hasty=True, seed=1)
    result = _gone(monkeypatch, _Slow(asked_max=3), [planned], 0.1)
    # Then its time counts from the repair, not from the end of what was left to be sent
    assert result.done[-1].recovered_seconds is None
    assert "not well after" in result.done[-1].note
    assert "the breaker is open" in result.done[-1].note


class _Stopped(_Mended):
    name = "stopped"
    seconds = (60.0, 60.0)

    def look(self, rig: Rig) -> None:
        raise KeyboardInterrupt


def test_a_run_that_is_stopped_is_repaired_drained_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given Ctrl-C in the middle of the second fault of three
    monkeypatch.setitem(catalog.FAULTS, "stopped", _Stopped)
    plan = [Planned(name, 0.0, share=0.0, hasty=False, seed=1) for name in ("mended", "stopped", "mended")]
    rig = _Slow(asked_max=0)
    result = _gone(monkeypatch, rig, plan, 60.0)
    # Then that fault is repaired, and its time excuses what it did; nothing more is sent or injected
    assert rig.story == ["inject", "repair", "well", "inject", "repair", "stop clients", "well"]
    assert [window.name for window in result.windows] == ["mended", "stopped"]
    # And the run is judged: less was tried than was asked for
    assert (len(result.done), result.recovery.seconds is not None) == (1, True)
    assert result.verdict is Verdict.NOT_PROVEN
