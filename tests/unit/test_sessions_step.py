"""With how many processes a worker asks PostgreSQL for sessions."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.components import Pool

from pipeline import wiring
from pipeline.names import Queue
from pipeline.settings import Settings
from tasks.sessions import SessionsStep


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
