"""The table of all metrics as Markdown: `python -m monitoring.metrics_table > docs/metrics.md`."""

import sys
import tempfile
from dataclasses import replace
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from ingest.errors import status_of
from pipeline.clock import SystemClock
from pipeline.control_store.memory import MemoryBucket, MemoryControlStore, MemoryServer
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.flow.shares import Shares
from pipeline.metrics import IngestMetrics, LevelCounts, LevelsCollector, LoopsCollector, RequestsByStatus
from pipeline.names import LoopName, Mode
from pipeline.policies import make_policy
from pipeline.policies.drain_time import DrainTimePolicy
from pipeline.ports.control import Consumption
from pipeline.ports.rate import PartitionSample, PolicyRecord, RateSample, Shadow
from pipeline.settings import Settings
from pipeline.system_metrics import MetricsContext, SystemCollector
from tasks.metrics import ChildrenCollector

_HEAD: Final = """\
# Metrics

Every process exports its own metrics. Only the control worker exports the metrics of the whole system: otherwise sums
would count them several times. A gauge with an unknown value is absent. Counters of the whole system are kept on the
control server, so they survive the death of a process; they restart at 0 after a flush.
`python -m monitoring.metrics_table` writes this page.

| where | address |
|---|---|
| ingest | `GET /metrics` ([operators.md](operators.md)); where several processes share a port, `INGEST_METRICS_PORT` |
| workers, the control worker among them | `WORKER_METRICS_PORT` |
| Flower | `GET /metrics` of Flower, without a password: what it shows of tasks is Flower's own |
"""


def system_metrics(log_url: str) -> list[Metric]:
    """The control worker's metrics, with all values known, on an event log of this kind."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(event_log_url=log_url, watched_paths=folder)
        server = MemoryServer()
        store, counters = MemoryControlStore(settings, server), MemoryCounters(server)
        store.restore([], actor="table")
        store.publish_rate(
            base_rate=1.0, floor_rate=1.0, mode=Mode.NORMAL, lag=1, lag_known_at=server.clock.now(), actor="table",
            consumption=Consumption({0: 1}, 1, 1.0, {0: 1.0}),
            policy=_policy_record(settings),
            shares=Shares(1.0, 1.0),
        )  # fmt: skip
        MemoryBucket(settings, server).take(needed=1, wanted=1, process="table")
        names = (
            "dead_letters", "dead_letter_conflicts", "database_bytes", "connections", "connections_max",
            "retention_overdue",
        )  # fmt: skip
        counters.note(dict.fromkeys(names, 0), seconds=60)
        context = MetricsContext(settings, SystemClock(), store, counters, lambda: (1, 1))
        return list(SystemCollector(context).collect())


def _policy_record(settings: Settings) -> PolicyRecord:
    """The record of the policy that has the most metrics."""
    decision = DrainTimePolicy.make(settings).decide(RateSample(None, {0: PartitionSample(1, 1)}), None)
    bands = make_policy(settings).describe()
    explanation = decision.explanation
    shadow = Shadow(decision.rate, decision.mode, PolicyRecord(explanation))
    return PolicyRecord(replace(explanation, thresholds=(*bands.thresholds, *explanation.thresholds)), shadow=shadow)


def groups() -> dict[str, list[Metric]]:
    """All metrics of our own, by the process that exports them."""
    registry = CollectorRegistry()
    ingest = IngestMetrics(registry)
    ingest.answers.labels("accepted")
    registry.register(RequestsByStatus(ingest, status_of, lambda: 0))
    registry.register(LevelsCollector(LevelCounts()))
    loops = LoopsCollector(lambda: {LoopName.FOLLOWER: 0})
    registry.register(loops)
    system = system_metrics("redis://log")
    known = {metric.name for metric in system}
    system += [metric for metric in system_metrics("kafka://log") if metric.name not in known]
    return {
        "Ingest, each process": list(registry.collect()),
        "Workers, each": [*ChildrenCollector().collect(), *loops.collect()],
        "Control worker, for the whole system": system,
    }


def table() -> str:
    """The page."""
    parts = [_HEAD]
    for title, metrics in groups().items():
        parts.append(f"\n## {title}\n\n| Metric | Type | Labels | Meaning |\n|---|---|---|---|")
        for metric in metrics:
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            labels = sorted({label for sample in metric.samples for label in sample.labels} - {"le"})
            parts.append(f"| `{name}` | {metric.type} | {', '.join(labels)} | {metric.documentation} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
