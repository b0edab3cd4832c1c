"""The start of an ingest process: connections wait until events can be accepted, and not for ever."""

import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from checks.testbed.wire import Wire, get, post, request
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.names import LimitedBy
from pipeline.ports.control import ControlState, OperatorLimit, PublishedRate
from pipeline.ports.log import LogIdentity
from stack.servers import free_port, port_problem
from support.running_ingest import SAMPLE, RunningIngest, edge_settings, eventually, running_ingest


class SlowLog(MemoryLog):
    """Answers for the first time when it is told to."""

    def __init__(self, server: MemoryLogServer) -> None:
        super().__init__(server=server)
        self.answers = threading.Event()

    def identity(self) -> LogIdentity:
        self.answers.wait()
        return super().identity()


@contextlib.contextmanager
def starting() -> Iterator[tuple[RunningIngest, SlowLog]]:
    """An ingest whose log has not answered yet."""
    log = SlowLog(MemoryLogServer(4))
    edge = RunningIngest(edge_settings(), log)
    edge.begin()
    try:
        yield edge, log
    finally:
        log.answers.set()
        edge.stop()


def test_a_request_during_the_start_waits_for_the_log_instead_of_being_refused() -> None:
    with starting() as (edge, log), Wire(edge.port) as wire:
        # Given a client that sends before the log has answered
        wire.send(request(json.dumps(SAMPLE).encode()))
        assert select.select([wire.socket], [], [], 0.3)[0] == [], "it is not refused"
        # When the log answers, Then its event is accepted
        log.answers.set()
        assert wire.answer().status == 202


def test_a_log_that_does_not_answer_is_said_all_the_same() -> None:
    with starting() as (edge, _), Wire(edge.port) as wire:
        wire.send(request(json.dumps(SAMPLE).encode()))
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (503, "unavailable")


def test_a_follower_that_finds_the_store_unavailable_makes_admission_look_at_the_bucket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given an ingest whose next own call to the bucket is far away
    monkeypatch.setattr("ingest.admission.PRESENCE_SECONDS", 3600)
    with running_ingest() as edge:
        assert not edge.service.admission.is_local
        # When the control server ends, then it is known at once that the bucket is unavailable too
        edge.control.is_unavailable = True
        eventually(lambda: edge.service.admission.is_local, "the bucket is known to be unavailable")
        edge.control.is_unavailable = False
        eventually(lambda: not edge.service.admission.is_local, "the bucket is known to be back")


def test_a_state_that_has_not_changed_wakes_no_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.follower.WAIT_SECONDS", 0.005)
    with running_ingest() as edge:
        service, noted = edge.service, list[float]()
        note_rate = service._note_rate

        def counted(state: ControlState, rate: PublishedRate) -> None:
            noted.append(rate.rate)
            note_rate(state, rate)

        def turns(count: int) -> None:
            """Until the follower has read the state so many times."""
            for _ in range(count):
                newest = service.follower.newest
                eventually(lambda n=newest: service.follower.newest is not n, "the follower reads")  # type: ignore[misc]

        monkeypatch.setattr(service, "_note_rate", counted)
        # When a rate is published, then admission gets it, and not again after each read
        edge.publish(500.0)
        eventually(lambda: 500.0 in noted, "it is noted")
        turns(2)
        before = len(noted)
        turns(5)
        assert len(noted) == before
        # But as long as an operator's rate counts, whose end is a time, or an operator limits an account
        edge.store.set_override(9.0, until=edge.control.clock.now() + 3600, actor="ann", why="a test")
        eventually(lambda: noted.count(9.0) > 3, "it is noted after each read")
        edge.store.clear_override(actor="ann", why="a test")
        eventually(lambda: noted[-1] == 500.0, "its end is noted, too")
        edge.store.set_override(500.0, until=edge.control.clock.now() + 0.2, actor="ann", why="the same rate")
        said = service.admission
        eventually(lambda: said._limited_by is LimitedBy.OVERRIDE, "it decides the rate")
        eventually(lambda: said._limited_by is LimitedBy.RATE, "it has ended, and the rate is the same")
        limit = OperatorLimit("10.0.0.1", rate=5.0, weight=None, actor="ann", why="a test", since=0.0)
        edge.store.restore_account_limits([limit], actor="test")
        eventually(lambda: service.accounts.is_reporting, "the limit is known")
        before = len(noted)
        eventually(lambda: len(noted) > before + 3, "the limit's state is noted after each read")


def test_a_taken_port_for_metrics_is_logged_and_events_are_accepted(caplog: pytest.LogCaptureFixture) -> None:
    # Given another program on INGEST_METRICS_PORT
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Then ingest starts without metrics there, and says so
        with running_ingest(ingest_metrics_port=port) as edge:
            eventually(lambda: f"no metrics: can't listen on 127.0.0.1, port {port}" in caplog.text, "it is logged")
            assert post(edge.port, SAMPLE).status == 202
            # And it stops as usual


def test_a_port_for_metrics_is_free_again_after_the_stop() -> None:
    port = free_port()
    with running_ingest(ingest_metrics_port=port):
        eventually(lambda: get(port, "/metrics").status == 200, "metrics are served")
    assert port_problem("127.0.0.1", port) is None
