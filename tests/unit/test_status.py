"""What the terminal reads: every part asked once, none missed where it does not answer."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.__main__ import screen
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryServer
from pipeline.errors import (
    LogUnavailableError,
    SinkUnavailableError,
    SluiceError,
    StoreRefusesError,
    StoreUnavailableError,
)
from pipeline.flow.refusals import Refusals, Refused
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.names import Mode, PauseReason
from pipeline.ports.control import ControlState
from pipeline.ports.dead_letters import DeadLetterCounts
from pipeline.ports.history import COUNTS, HistoryEntry
from pipeline.ports.log import PartitionPosition
from pipeline.status import StatusContext, read_status, status_document
from support.control import control_settings, memory_rig


class AwayStore:
    def state(self) -> ControlState:
        raise StoreUnavailableError


class AwayLog(MemoryLog):
    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        raise LogUnavailableError


def away_database() -> DeadLetterCounts:
    raise SinkUnavailableError


def test_with_everything_away_the_status_says_so_and_does_not_raise() -> None:
    # Given parts of which none answers
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    away: Any = AwayStore()
    parts = StatusContext(rig.settings, clock, away, rig.events, AwayLog(partitions=1), None, away_database)
    # When it is read
    status = read_status(parts)
    # Then all is unknown, and each part is a problem
    document = status_document(status)
    assert len(document["reasons"]) == 3
    assert (document["status"], document["consumption"], document["consumerLag"]) == ("unknown", "unknown", None)


def test_what_parts_know_is_read() -> None:
    # Given a store where consumption is paused, and a log that was told of no commit
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    rig.store.restore([], actor="test")
    rig.store.pause(PauseReason.OPERATOR, actor="ann@host", why="moving the disk")
    log = MemoryLog(partitions=2)
    log.append([(0, b"{}")] * 3)
    parts = StatusContext(rig.settings, clock, rig.store, rig.events, log, None, lambda: DeadLetterCounts(7, 2))
    # When it is read before and after commits
    before = read_status(parts)
    log.commit(log.identity().log_id, 0, 1)
    log.commit(log.identity().log_id, 1, 0)
    after = read_status(parts)
    # Then unknown is not zero, and the rest is there
    assert (before.inputs.lag, after.inputs.lag, after.inputs.lag_by_partition) == (None, 2, {0: 2, 1: 0})
    assert (after.dead_letters, after.dead_letter_conflicts) == (7, 2)
    assert (status_document(after)["deadLetters"], status_document(after)["deadLetterConflicts"]) == (7, 2)
    assert status_document(after)["consumption"] == "paused"
    assert [pause.actor for pause in after.inputs.pauses or ()] == ["ann@host"]


def test_the_queue_of_the_control_worker_is_asked_only_while_the_controller_is_silent() -> None:
    # Given a controller that has just published, and a queue in which its ticks wait
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    rig.store.restore([], actor="test")
    rig.store.publish_rate(base_rate=5.0, floor_rate=1.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="test")
    answers: list[int | SluiceError] = [3, StoreUnavailableError("no answer")]

    def waiting() -> int:
        answer = answers.pop(0)
        if isinstance(answer, SluiceError):
            raise answer
        return answer

    parts = StatusContext(
        rig.settings, clock, rig.store, rig.events, MemoryLog(partitions=2), ticks_waiting=waiting,
        store_memory=lambda: (7, 9),
    )  # fmt: skip
    assert read_status(replace(parts, ticks_waiting=None)).inputs.store_memory is None
    assert (read_status(parts).inputs.ticks_waiting, len(answers)) == (None, 2)
    # When it is silent, then the queue is asked, and a queue that does not answer hides nothing else
    clock.advance(600.0)
    assert read_status(parts).inputs.ticks_waiting == 3
    silent = read_status(parts).inputs
    assert silent.store_memory == (7, 9)
    assert (silent.ticks_waiting, silent.is_controller_silent, answers) == (None, True, [])
    # And not while the control store is away
    away: Any = AwayStore()
    assert read_status(replace(parts, store=away)).inputs.ticks_waiting is None


def test_the_lag_of_some_partitions_is_not_that_of_the_log() -> None:
    # Given a log whose commits are known, and of which one partition can't be asked
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    rig.store.restore([], actor="test")
    server = MemoryLogServer(2)
    log = MemoryLog(server=server)
    log.append([(0, b"{}")] * 3 + [(1, b"{}")] * 3)
    for partition in (0, 1):
        log.commit(log.identity().log_id, partition, 1)
    parts = StatusContext(rig.settings, clock, rig.store, rig.events, log, None)
    assert read_status(parts).inputs.lag == 4
    # When nothing but the log says what the lag is, then it is unknown
    server.lose_leader(1)
    assert read_status(parts).inputs.lag is None


def test_refusals_by_account_are_read_and_unknown_is_not_none() -> None:
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), server := MemoryServer(clock))
    rig.store.restore([], actor="test")
    refused = Refusals({"192.0.2.1": {"share": Refused(2, 40)}})
    rig.throttle.report("one", {0: refused})
    parts = StatusContext(rig.settings, clock, rig.store, rig.events, MemoryLog(partitions=1), throttle=rig.throttle)
    status = read_status(parts)
    assert status.refusals == refused
    assert [one["account"] for one in status_document(status)["throttle"]["accounts"]] == ["192.0.2.1"]
    server.is_unavailable = True
    assert status_document(read_status(parts))["throttle"] is None


class Answers:
    """One part of the control store, which answers or refuses what it is asked for."""

    def __init__(self, answer: object) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self, *_: object, **__: object) -> Any:
        self.asked += 1
        if isinstance(self.answer, SluiceError):
            raise self.answer
        return self.answer


ENTRY = HistoryEntry("1-0", 1.0, (0,) * len(COUNTS), {})
REFUSED = Refusals({"192.0.2.1": {"share": Refused(2, 40)}})
RIGHTS = StoreRefusesError("the control store (Redis) refuses: NOPERM")


@pytest.mark.parametrize("refused", ["state", "control events", "history", "refused accounts"])
def test_an_answer_that_the_store_refuses_hides_no_other(refused: str) -> None:
    # Given a store that refuses one of the questions, as to a user without a right
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    rig.store.restore([], actor="test")
    rig.store.pause(PauseReason.OPERATOR, actor="ann@host", why="moving the disk")
    known = {
        "state": rig.store.state(),
        "control events": rig.events.last(10),
        "history": [ENTRY],
        "refused accounts": REFUSED,
    }
    state, events, history, throttle = (Answers(RIGHTS if what == refused else known[what]) for what in known)
    parts = StatusContext(
        rig.settings, clock, cast(Any, SimpleNamespace(state=state)), cast(Any, SimpleNamespace(last=events)),
        MemoryLog(partitions=1), cast(Any, SimpleNamespace(since=history)),
        throttle=cast(Any, SimpleNamespace(reported=throttle)),
    )  # fmt: skip
    # When the status is read
    status = read_status(parts)
    # Then all others were asked and are shown, and the one is named
    assert [one.asked for one in (state, events, history, throttle)] == [1] * 4
    assert (status.inputs.store_problem is not None) == (refused == "state")
    assert (status.inputs.pauses is None) == (refused == "state")
    assert (status.events == ()) == (refused == "control events")
    assert (status.refusals is None) == (refused == "refused accounts")
    document, text = status_document(status), screen(status)
    if refused == "state":
        assert document["unanswered"] == []
    else:
        assert document["unanswered"] == [{"what": refused, "why": str(RIGHTS)}]
        assert f"unanswered   {refused}: {RIGHTS}" in text.splitlines()


def test_a_store_that_does_not_answer_is_asked_once() -> None:
    # Given a store that is away, where each question would take a time-out
    state, other = Answers(StoreUnavailableError("no answer")), Answers(())
    clock = ManualClock()
    parts = StatusContext(
        control_settings("redis://nowhere"), clock, cast(Any, SimpleNamespace(state=state)),
        cast(Any, SimpleNamespace(last=other)), MemoryLog(partitions=1), cast(Any, SimpleNamespace(since=other)),
        throttle=cast(Any, SimpleNamespace(reported=other)),
    )  # fmt: skip
    status = read_status(parts)
    assert (status.inputs.store_problem, status.unanswered) == ("no answer", ())
    assert other.asked == 0
