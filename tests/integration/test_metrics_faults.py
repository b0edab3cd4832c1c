"""Metrics while something is away or not known: of ingest, and of real workers on servers that fail."""

import contextlib
import math
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psutil
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from checks.testbed.processes import Program, batches_worker, beat, control_worker, supervised
from checks.testbed.waiting import WAIT_SECONDS_MAX, least_seconds, wait_until
from pipeline.clock import SystemClock
from pipeline.event import Event, encode_record, partition_of, record_head
from pipeline.settings import Settings
from stack.servers import Server, free_port
from support.event_logs import patient_log
from support.running_ingest import RunningIngest, edge_settings
from support.servers import own_servers

SCRAPE_SECONDS_MAX = 1.0
STORED = 'sluice_drained_events_total{result="stored"}'
TIMED = "sluice_receipt_to_store_seconds_count"


@dataclass
class Rig:
    """Workers on servers of their own; each batch of events goes into the log directly."""

    settings: Settings
    postgres: Server
    control_redis: Server
    batches: Program
    control: Program
    beat: Program
    batches_port: int
    appended: int = 0

    def __post_init__(self) -> None:
        self.log = patient_log(self.settings)

    def append(self, count: int) -> None:
        partitions = self.log.identity().partitions
        head = record_head(int(SystemClock().now() * 1000), "tests-1")
        entries = []
        for number in range(self.appended, self.appended + count):
            event = Event(f"c{number % 50}", "INFO", f"message {number}", "test", 1_700_000_000_000, f"id-{number}")
            entries.append((partition_of(event.correlation_id, partitions), encode_record(event, head)))
        self.log.append(entries)
        self.appended += count

    def scrape(self, port: int | None = None) -> dict[str, float]:
        """Every series of a worker (control's) by its name with labels."""
        port = port or self.settings.worker_metrics_port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_SECONDS_MAX) as answer:
            text = answer.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return found

    def quick_scrape(self) -> dict[str, float]:
        """A scrape, which fails where the fastest of several takes long: others work on this machine too."""
        found: dict[str, float] = {}

        def seconds_to_scrape() -> float:
            began = time.monotonic()
            found.clear()
            found.update(self.scrape())
            return time.monotonic() - began

        assert least_seconds(seconds_to_scrape, below=SCRAPE_SECONDS_MAX) < SCRAPE_SECONDS_MAX
        return found

    def value(self, name: str) -> float | None:
        return self.scrape().get(name)

    def wait(self, condition: object, what: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        try:
            wait_until(condition, what, seconds_max=seconds_max)
        except AssertionError as error:
            logs = "\n".join(f"--- {one.name}\n{one.log()[-2000:]}" for one in (self.batches, self.control))
            raise AssertionError(f"{error}\n{logs}") from None

    def counts(self) -> list[float]:
        """How many events were stored, and how many timed, where a scrape shows it: a busy Redis may not answer one."""
        found = self.scrape()
        return [found[name] for name in (STORED, TIMED) if name in found]

    def wait_counted(self) -> None:
        self.wait(lambda: self.counts() == [self.appended] * 2, f"{self.appended} events are counted")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("metrics")
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(own_servers(folder))
        settings = servers.settings(
            drain_run_seconds_max=1.0,
            drain_hard_seconds_max=12.0,
            regulate_seconds=1.0,
            measure_seconds=1.0,
            breaker_failures_max=2,
            worker_metrics_port=free_port(),
        )
        control = control_worker(settings, folder)
        batches_port = free_port()
        batches = batches_worker(replace(settings, worker_metrics_port=batches_port), folder)
        ticker = beat(settings, folder)
        for program in (batches, control, ticker):
            stack.callback(program.stop)
            program.start()
        stack.enter_context(supervised(batches, control, ticker))
        found = Rig(settings, servers.postgres, servers.control_redis, batches, control, ticker, batches_port)

        def healthy() -> bool:
            with contextlib.suppress(OSError):
                return found.value('circuit_breaker_state{state="closed"}') == 1
            return False

        found.wait(healthy, "the control worker shows a closed breaker")
        found.append(1)
        found.wait_counted()
        yield found


@pytest.fixture
def rig(started: Rig) -> Iterator[Rig]:
    """The running rig; all of it runs for the next test, however this one ends."""
    yield started
    for one in (started.postgres, started.control_redis, started.batches, started.control, started.beat):
        one.ensure_running()


def test_killed_children_take_no_counts_along_and_leave_none_behind(rig: Rig) -> None:
    # Given counted events
    rig.append(1_000)
    rig.wait_counted()
    family = rig.scrape(rig.batches_port)["sluice_worker_children"]
    # When every child is killed
    rig.wait(lambda: len(rig.batches.children()) == family, "all children run")
    killed = rig.batches.children()
    for child in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    # Then the counters stand, and others take the place of the children
    rig.wait(
        lambda: (
            rig.scrape(rig.batches_port)["sluice_worker_children"] == family
            and not {one.pid for one in rig.batches.children()} & {one.pid for one in killed}
        ),
        "other children",
    )
    rig.wait_counted()
    # And what comes then is added once
    rig.append(500)
    rig.wait_counted()


def test_a_frozen_control_server_is_unknown_and_counts_nothing_twice(rig: Rig) -> None:
    # Given counted events, and a drain that stores while nobody answers its additions
    rig.append(1)
    rig.wait_counted()
    rig.control_redis.freeze()
    try:
        # Then a scrape answers at once, without what is not known (a busy log may not answer one)
        found: dict[str, float] = {}

        def has_the_log() -> bool:
            found.clear()
            found.update(rig.quick_scrape())
            return 'sluice_redis_memory_bytes{role="log"}' in found

        rig.wait(has_the_log, "the log's memory is known")
        assert not [name for name in found if name.startswith(("rate_limiter", "redis_stream", "circuit", STORED))]
        assert found['sluice_redis_memory_bytes{role="log"}'] > 0
        rig.append(700)
    finally:
        rig.control_redis.thaw()
    rig.wait_counted()


def test_a_postgres_that_is_away_does_not_slow_a_scrape(rig: Rig) -> None:
    rig.postgres.freeze()
    try:
        rig.append(100)
        paused = 'sluice_consumption_paused{reason="breaker"}'
        rig.wait(lambda: rig.value(paused) == 1, "the breaker opens")
        # (a busy Redis may not answer one scrape)
        rig.wait(lambda: rig.quick_scrape().get("rate_limiter_rate_limit") == rig.settings.rate_min, "the lowest rate")
        assert rig.value('circuit_breaker_state{state="closed"}') != 1
    finally:
        rig.postgres.thaw()
    rig.wait(lambda: rig.value('circuit_breaker_state{state="closed"}') == 1, "it closes")
    rig.wait_counted()


def test_counters_never_fall_while_children_die_at_work(rig: Rig) -> None:
    rig.append(1)
    rig.wait_counted()
    before = rig.appended
    seen: list[float] = []

    def look() -> None:
        seen.extend(rig.counts()[:1])

    look()
    rig.append(20_000)
    for child in rig.batches.children()[:3]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
        look()

    def all_are_stored() -> bool:
        look()
        return rig.value("sluice_lag_events") == 0 and seen[-1:] > [before]

    rig.wait(all_are_stored, "the lag is gone")
    assert seen == sorted(seen)
    assert seen[-1] <= rig.appended, "counted twice"
    # (Less may be: a child that dies takes along what it had not told yet. So tests of exact counts come before.)


def test_after_a_flush_gauges_are_unknown_until_the_controller_ticks(rig: Rig) -> None:
    # Given no Beat, and a control server that has lost everything
    rig.beat.stop()
    found: dict[str, float] = {}

    def is_unknown() -> bool:
        redis.Redis.from_url(rig.control_redis.url).flushall()
        found.clear()
        found.update(rig.scrape())
        # (a busy Redis may not answer a scrape: then nothing of it is there)
        return "rate_limiter_rate_limit" not in found and 'circuit_breaker_state{state="unknown"}' in found

    rig.wait(is_unknown, "no tick is under way any more")
    # Then what is not known is absent, or said to be unknown
    for name in ("rate_limiter_rate_limit", "sluice_lag_events", "sluice_controller_age_seconds"):
        assert name not in found, name
    assert not [name for name in found if name.startswith("redis_stream_consumer_lag")]
    assert found['circuit_breaker_state{state="closed"}'] == 0
    assert found['circuit_breaker_state{state="unknown"}'] == 1
    assert found['sluice_mode{mode="unknown"}'] == 1
    assert not [name for name in found if name.startswith("sluice_consumption_paused")]
    # And the next tick brings it all back
    rig.beat.start()
    rig.wait(lambda: "sluice_lag_events" in rig.scrape(), "the lag is known again")
    rig.wait(lambda: rig.value('circuit_breaker_state{state="closed"}') == 1, "so is the breaker")


def test_tokens_that_ingest_does_not_know_are_no_number() -> None:
    # Given an ingest that has not reached the bucket yet
    edge = RunningIngest(edge_settings(rate_max=100.0, rate_min=100.0))

    def tokens() -> float:
        edge.service.sample_gauges()
        found = edge.service.registry.get_sample_value("sluice_ingest_available_tokens")
        assert found is not None
        return found

    assert math.isnan(tokens())
    # When it has
    edge.start()
    edge.publish(100.0)
    # Then they are what the bucket holds
    try:
        wait_until(lambda: 0 < tokens() <= 100, "tokens are known")
    finally:
        edge.stop()
