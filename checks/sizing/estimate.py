"""The needs of a rate, computed from the costs of an event. Pure.

    cores     = rate * CPU time of an event * (its bytes / the bytes for which that was measured, at least 1)
    processes = cores / the share of a core that may be used, rounded up

The second factor assumes that all of the cost grows with the bytes. This is too high: a part is fixed per event.
"""

import math
from dataclasses import dataclass
from typing import Final

from checks.sizing.costs import BATCH_EVENTS, Costs
from pipeline.settings import Settings
from pipeline.sink.sessions import CONTROL_PROCESSES, batch_processes, sessions_needed

# Ingest adds these bytes to an event: its arrival time, the request's id, and an event id if the client sent none.
ADDED_BYTES: Final = 103
PARTITIONS_MAX: Final = 256
INGEST_PROCESSES_MIN: Final = 2  # one may be restarted
DAY_SECONDS: Final = 86_400
_SETTINGS: Final = Settings()


@dataclass(frozen=True, slots=True)
class Given:
    """The input of an estimate."""

    rate: float  # events/s
    size: int  # bytes of an event as a client sends it
    body: int = BATCH_EVENTS  # events in a request
    copies: int = 1  # of the event log
    outage_minutes: float = 30.0
    busy: float = 0.5  # share of a core that may be used
    postgres_cores: int = 8  # one PostgreSQL can use these for storing


@dataclass(frozen=True, slots=True)
class Estimate:
    """The result: the number of parallel systems (`systems`), and the other figures for each of them."""

    systems: int  # each with an event log, a control Redis and a PostgreSQL of its own
    limited_by: str  # the part that needs more than one system; "" with one
    rate: float  # events/s of each
    ingest_cores: float
    ingest_processes: int
    network_bytes: float  # a second, into ingest
    log_cores: float  # of its servers, all copies
    log_bytes: float  # held after the outage, all copies
    partitions: int  # LOG_PARTITIONS
    drains: int  # that run at once
    drains_max: int  # DRAINS_MAX
    drain_cores: float
    batch_processes: int
    control_processes: int
    sessions: int  # of PostgreSQL
    control_commands: float  # of the control Redis, a second, at most
    postgres_cores: float  # for storing
    disk_bytes_a_day: float  # of PostgreSQL


def ingest_us(costs: Costs, body: int) -> float:
    """CPU time of ingest for an event, in requests of `body` events: a part per event, and a part per request."""
    request = (costs.single_us - costs.batch_us) * BATCH_EVENTS / (BATCH_EVENTS - 1)
    return max(0.0, costs.single_us - request) + max(0.0, request) / body


def estimate(given: Given, costs: Costs) -> Estimate:
    """The needs of the given rate."""
    record = given.size + ADDED_BYTES
    stored_factor = max(1.0, record / costs.record_bytes)
    sent_factor = max(1.0, given.size / costs.event_bytes)
    postgres_us, log_us = costs.postgres_us * stored_factor, costs.log_us * sent_factor
    systems, limited_by = _systems(given, costs, postgres_us, log_us)
    rate = given.rate / systems
    ingest_cores = rate * ingest_us(costs, given.body) * sent_factor / 1e6
    processes = max(INGEST_PROCESSES_MIN, math.ceil(ingest_cores / given.busy))
    # A drain and its session take turns at most: the slower one limits it.
    drain_us = costs.drain_us * stored_factor
    needed = max(1, math.ceil(rate * max(drain_us, postgres_us) / 1e6 / given.busy))
    drains_max = max(_SETTINGS.drains_max, needed)
    partitions = min(PARTITIONS_MAX, max(_SETTINGS.log_partitions, 2 ** math.ceil(math.log2(needed))))
    settings = Settings(log_partitions=partitions, drains_max=min(drains_max, PARTITIONS_MAX))
    drains = min(partitions, drains_max)
    return Estimate(
        systems=systems,
        limited_by=limited_by,
        rate=rate,
        ingest_cores=ingest_cores,
        ingest_processes=processes,
        network_bytes=rate * given.size,
        log_cores=rate * log_us * given.copies / 1e6,
        log_bytes=rate * 60 * given.outage_minutes * _bytes(costs.held_bytes, record, costs) * given.copies,
        partitions=partitions,
        drains=drains,
        drains_max=settings.drains_max,
        drain_cores=rate * drain_us / 1e6,
        batch_processes=batch_processes(settings),
        control_processes=CONTROL_PROCESSES,
        sessions=sessions_needed(settings).all,
        control_commands=_commands(costs, processes, drains, rate, rate * max(drain_us, postgres_us) / 1e6 / drains),
        postgres_cores=rate * postgres_us / 1e6,
        disk_bytes_a_day=rate * DAY_SECONDS * _bytes(costs.stored_bytes, record, costs),
    )


def _systems(given: Given, costs: Costs, postgres_us: float, log_us: float) -> tuple[int, str]:
    """The number of systems, and the part that needs them: PostgreSQL has `postgres_cores` cores, a Redis has one."""
    of_postgres = math.ceil(given.rate * postgres_us / 1e6 / given.busy / given.postgres_cores)
    of_log = math.ceil(given.rate * log_us / 1e6 / given.busy) if costs.log == "redis" else 1
    systems = max(1, of_postgres, of_log)
    return systems, "" if systems == 1 else "PostgreSQL" if of_postgres >= of_log else "the event log's Redis"


def _bytes(measured: float, record: float, costs: Costs) -> float:
    """Bytes for a record. One of `record_bytes` takes `measured`; the overhead is the same for each."""
    return max(record, measured + record - costs.record_bytes)


def _commands(costs: Costs, processes: int, drains: int, rate: float, busy: float) -> float:
    """Commands a second on the control Redis, with the smallest batches that the drains have time for."""
    batches = min(rate / drains, max(0.0, 1 - busy) / costs.batch_seconds) * drains
    leases = 1 / _SETTINGS.lease_seconds  # of all processes: each covers lease_seconds of the whole rate
    of_events = leases * costs.lease_commands + batches * costs.batch_commands
    return costs.idle_commands + processes * costs.ingest_commands + of_events
