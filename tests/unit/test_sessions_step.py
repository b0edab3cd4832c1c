"""With how many processes a worker asks PostgreSQL for sessions, and what it does if these are too few."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.components import Pool

from pipeline import wiring
from pipeline.clock import ManualClock
from pipeline.errors import SinkUnavailableError
from pipeline.names import Queue
from pipeline.settings import Settings
from tasks.sessions import FewSessions, SessionsStep


def a_worker(queue: Queue, *, autoscale: tuple[int, int] | None = None) -> Any:
    """What the step reads of a worker with --concurrency 3, after Celery's own step has read --autoscale."""
    amqp = SimpleNamespace(queues=SimpleNamespace(consume_from={queue.value: object()}))
    app = SimpleNamespace(amqp=amqp, sluice_settings=Settings())
    worker = SimpleNamespace(app=app, concurrency=3, optimization=None)
    Pool(worker, autoscale=autoscale)
    return worker


@pytest.mark.parametrize(
    ("worker", "own"),
    [
        (a_worker(Queue.BATCHES), 3),
        (a_worker(Queue.BATCHES, autoscale=(40, 2)), 40),  # as many as it may fork later
        (a_worker(Queue.BATCHES, autoscale=(2, 0)), 2),
        (a_worker(Queue.CONTROL, autoscale=(40, 2)), 0),
    ],
)
def test_the_most_processes_for_batches_count(monkeypatch: pytest.MonkeyPatch, worker: Any, own: int) -> None:
    asked: list[int] = []
    monkeypatch.setattr(wiring, "session_problem", lambda _, *, own_processes: asked.append(own_processes))
    SessionsStep(worker).start(worker)
    assert asked == [own]


def test_only_a_worker_for_batches_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(wiring, "session_problem", lambda _, *, own_processes: f"too few, {own_processes}")
    with pytest.raises(SystemExit):
        SessionsStep(None).start(a_worker(Queue.BATCHES))
    worker = a_worker(Queue.CONTROL)
    SessionsStep(worker).start(worker)
    ends, starts = [line.message for line in caplog.records if line.levelno == logging.CRITICAL]
    assert ends.startswith("this worker ends: PostgreSQL: too few, 3")
    assert starts.startswith("this worker starts, and those for batches do not: PostgreSQL: too few, 0")


def test_the_control_loop_follows_limits_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, answers = ManualClock(), list[str | SinkUnavailableError | None]()

    def answer(_: Settings, *, own_processes: int, warns: bool) -> str | None:
        assert (own_processes, warns) == (0, False)
        one = answers.pop(0)
        if isinstance(one, SinkUnavailableError):
            raise one
        return one

    monkeypatch.setattr(wiring, "session_problem", answer)
    few = FewSessions(Settings(), clock)
    assert few.problem is None
    for said, problem in (
        (None, None),
        ("too few", "too few"),
        (SinkUnavailableError("away"), "too few"),
        (None, None),
    ):
        answers.append(said)
        few.look()
        few.look()  # a tick later: PostgreSQL is not asked each time
        assert few.problem == problem
        clock.advance(60)
