"""What the controller and a drain do, once and in the test's own process, on real servers."""

from functools import partial

from checks.testbed.waiting import eventually
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.drain import drain
from pipeline.drain.report import DrainReport
from pipeline.policies import make_policy
from pipeline.ports.control import PublishedRate
from pipeline.regulate import regulate
from pipeline.regulate.context import ControlAdapters, SinkQueries
from pipeline.regulate.report import RegulateReport
from tasks.context import WorkerContext


def published(worker: WorkerContext) -> PublishedRate:
    """What the controller publishes, as soon as the log answers."""
    found: list[PublishedRate | None] = []

    def is_published() -> bool:
        found.append(_tick(worker).published)
        return found[-1] is not None

    eventually(is_published, "a rate is published")
    assert found[-1] is not None
    return found[-1]


def _tick(worker: WorkerContext) -> RegulateReport:
    return regulate(
        settings=worker.settings, policy_of=partial(make_policy, worker.settings), log=worker.log,
        sink=SinkQueries(
            stored_offsets=worker.offsets.stored_offsets_and_time,
            settled_offsets=worker.offsets.settled_offsets,
            load_operator_state=worker.operators.load,
            terminate_drainer=lambda *_: False,
            why_standing=lambda *_: "",
        ),
        control=ControlAdapters(worker.control_store, worker.events, worker.leases, worker.progress, worker.fence),
        actor="test",
    )  # fmt: skip


def drained(worker: WorkerContext, partition: int) -> DrainReport:
    """The report of a drain that ends when nothing more waits, or at a pause."""
    looked = iter(range(1_000_000))
    return drain(
        partition, log=worker.log, sink=worker.sink, fence=worker.fence,
        breaker=SinkBreaker(worker.settings, worker.control_store, SystemClock(), "test"),
        paused=lambda: next(looked) > 8, settings=worker.settings, clock=SystemClock(),
    )  # fmt: skip
