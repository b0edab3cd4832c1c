"""Serves a worker's metrics. The control worker also serves the metrics of the whole system."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from celery import bootsteps
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pipeline import metrics, wiring
from pipeline.clock import SystemClock
from pipeline.loops import Loops
from pipeline.metrics_server import serve_metrics
from pipeline.names import Queue
from pipeline.settings import Settings
from pipeline.start_counter import count_start
from pipeline.system_metrics import MetricsContext, SystemCollector

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class ChildrenCollector(Collector):
    """CPU and memory of a worker's children, which run the tasks. Reads /proc; has no values without it."""

    def describe(self) -> Iterable[Metric]:
        """The families of `collect`, without values."""
        return self._families([])

    def collect(self) -> Iterator[Metric]:
        """The current values. The CPU time of a child that has ended is no longer included: the counter restarts."""
        yield from self._families(_children(os.getpid()))

    def _families(self, children: list[tuple[float, int]]) -> list[Metric]:
        return [
            metrics.WORKER_CHILDREN.gauge(len(children)),
            metrics.WORKER_CHILDREN_MEMORY.gauge(sum(resident for _, resident in children)),
            metrics.WORKER_CHILDREN_CPU.counter(sum(seconds for seconds, _ in children)),
        ]


def _children(pid: int) -> list[tuple[float, int]]:
    """(CPU seconds, resident bytes) of each child process."""
    found = []
    try:
        names = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    for name in names:
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            resident = int(Path(f"/proc/{name}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue  # it has just ended
        found.append(((int(fields[11]) + int(fields[12])) / _TICKS, resident * _PAGE_BYTES))
    return found


class MetricsStep(bootsteps.StartStopStep):
    """A step of the worker: an HTTP server on WORKER_METRICS_PORT, in a thread of the main process.

    It starts after the worker may drain: an orchestrator that waits for it keeps the old workers until then.
    """

    requires = ("tasks.schema:SchemaStep",)  # which itself comes after the pool has forked

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._end: Callable[[], None] | None = None

    def start(self, worker: Any) -> None:
        """Start the server if a port is set."""
        settings: Settings = worker.app.sluice_settings
        is_control = Queue.CONTROL.value in worker.app.amqp.queues.consume_from
        count_start(settings, "control" if is_control else "batches")
        if settings.worker_metrics_port:
            registry = make_registry(settings, loops=worker.app.sluice_loops, is_control=is_control)
            self._end = serve_metrics(settings.metrics_host, settings.worker_metrics_port, registry)

    def stop(self, _worker: Any) -> None:
        """Stop the server."""
        if self._end is not None:
            self._end()
            self._end = None

    def terminate(self, worker: Any) -> None:
        """Stop the server, when the worker ends at once."""
        self.stop(worker)


def make_registry(settings: Settings, *, loops: Loops, is_control: bool) -> CollectorRegistry:
    """A worker's metrics: its own, its children's, and on the control worker those of the whole system."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(ChildrenCollector())
    registry.register(metrics.LoopsCollector(loops.failures))
    if is_control:
        registry.register(SystemCollector(_metrics_context(settings)))
    return registry


def _metrics_context(settings: Settings) -> MetricsContext:
    is_redis_log = settings.log_scheme != "kafka"
    return MetricsContext(
        settings=settings,
        clock=SystemClock(),
        store=wiring.make_control_store(settings),
        counters=wiring.make_counters(settings),
        log_memory=wiring.make_log_counters(settings).memory if is_redis_log else None,
    )
