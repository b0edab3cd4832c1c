"""Every metric, declared once, with what it tells.

A process makes the group that it needs on a registry of its own, so that nothing is registered by an import and
several applications can live in one process.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_APPEND_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds
_GROUP_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # events

_REFUSALS: Final = (429, 503)


class IngestMetrics:
    """What one ingest process tells of itself. Gauges of the whole system are not here: every process would add one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Answers to POST /api/logs by `code`: `accepted`, or the code of the error. What clients experience.
        self.answers: Counter = Counter(
            "sluice_ingest_answers", "Answers to POST /api/logs", ["code"], registry=registry
        )
        self.accepted_answers = self.answers.labels("accepted")  # the one of every good request, looked up once
        # Events acknowledged: durable in the log. Its rate beside the admitted rate shows how much of it is used.
        self.accepted_events: Counter = Counter(
            "sluice_ingest_accepted_events", "Events acknowledged", registry=registry
        )
        # Calls to the global bucket by `result`: `granted`, `empty`, `away`. Many `empty` ones: demand above the rate.
        self.lease_calls: Counter = Counter(
            "sluice_ingest_lease_calls", "Calls to the bucket", ["result"], registry=registry
        )
        # Duration of one append: what a 202 waits for.
        self.append_seconds: Histogram = Histogram(
            "sluice_ingest_append_seconds", "Duration of one append", buckets=_APPEND_BUCKETS, registry=registry
        )
        # Size of one append: grows under load, since the previous append is the wait for the next group.
        self.append_group_events: Histogram = Histogram(
            "sluice_ingest_append_group_events", "Events of one append", buckets=_GROUP_BUCKETS, registry=registry
        )
        # Events and bytes waiting for the log: near their limits 503s begin.
        self.append_waiting_events: Gauge = Gauge(
            "sluice_ingest_append_waiting_events", "Events waiting for the log", registry=registry
        )
        self.append_waiting_bytes: Gauge = Gauge(
            "sluice_ingest_append_waiting_bytes", "Bytes waiting for the log", registry=registry
        )
        # Admitted rate and tokens as this process sees them.
        self.rate: Gauge = Gauge("sluice_ingest_rate", "Admitted events per second, all processes", registry=registry)
        self.available_tokens: Gauge = Gauge("sluice_ingest_available_tokens", "Tokens to be had", registry=registry)
        # 1 while the bucket is away and this process goes by the last rate that it knew.
        self.admission_is_local: Gauge = Gauge("sluice_ingest_admission_local", "Bucket is away", registry=registry)
        # 1 while the log answers.
        self.log_answers: Gauge = Gauge("sluice_ingest_log_answers", "Event log answers", registry=registry)
        # Open connections; they are bounded.
        self.connections: Gauge = Gauge("sluice_ingest_connections", "Open connections", registry=registry)


class RequestsByStatus(Collector):
    """Answers to POST /api/logs by HTTP status, made from those by code: counted once, shown twice.

    `beyond_first` gives how many events of refused bodies were read, but for the first of each.
    """

    def __init__(
        self, metrics: IngestMetrics, status_of: Callable[[str], int], beyond_first: Callable[[], int]
    ) -> None:
        self._answers = metrics.answers
        self._status_of = status_of
        self._beyond_first = beyond_first

    def describe(self) -> Iterable[Metric]:
        """What `collect` gives."""
        return [self._family(), self._refused(0)]

    def collect(self) -> Iterator[Metric]:
        """A series for each status that was answered, and the events that were refused."""
        by_status: dict[int, float] = {}
        for family in self._answers.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    status = self._status_of(sample.labels["code"])
                    by_status[status] = by_status.get(status, 0.0) + sample.value
        requests = self._family()
        for status, count in sorted(by_status.items()):
            requests.add_metric([str(status)], count)
        yield requests
        yield self._refused(sum(by_status.get(status, 0.0) for status in _REFUSALS) + self._beyond_first())

    @staticmethod
    def _refused(events: float) -> CounterMetricFamily:
        # With those accepted: what is offered.
        return CounterMetricFamily(
            "sluice_ingest_refused_events",
            "Events refused with 429 or 503; a body that was refused unread counts as one",
            value=events,
        )

    @staticmethod
    def _family() -> CounterMetricFamily:
        # What clients experience, by what every HTTP tool knows.
        return CounterMetricFamily("http_requests", "Answers to POST /api/logs by HTTP status", labels=["status"])
