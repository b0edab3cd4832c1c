"""What the control worker shows of the whole system, on a control server in memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pipeline import __version__
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryBucket, MemoryControlStore, MemoryServer
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.errors import StoreRefusesError, StoreUnavailableError
from pipeline.health.snapshot import STALE_PERIODS
from pipeline.names import AlarmCode, Mode, Severity
from pipeline.ports.control import Alarm, Consumption
from pipeline.settings import Settings
from pipeline.system_metrics import FACTS_SECONDS, MetricsContext, SystemCollector


class Rig:
    def __init__(self, **changes: Any) -> None:
        self.settings = Settings(**changes)
        self.clock = ManualClock()
        self.server = MemoryServer(self.clock)
        self.store = MemoryControlStore(self.settings, self.server)
        self.bucket = MemoryBucket(self.settings, self.server)
        self.counters = MemoryCounters(self.server)
        self.log_memory: Callable[[], tuple[int, int]] | None = lambda: (5, 0)
        self.store.restore([], actor="test")

    def publish(self, *, lag: dict[int, int] | None, drain_rate: float | None = 100.0, rate: float = 1000.0) -> None:
        self.store.publish_rate(
            base_rate=rate,
            floor_rate=100.0,
            mode=Mode.NORMAL,
            lag=None if lag is None else sum(lag.values()),
            lag_known_at=None if lag is None else self.clock.now(),
            actor="test",
            consumption=None if lag is None else Consumption(lag, 0, drain_rate, dict.fromkeys(lag, 7.0)),
        )

    def collector(self) -> SystemCollector:
        return SystemCollector(MetricsContext(self.settings, self.clock, self.store, self.counters, self.log_memory))

    def series(self) -> dict[str, float]:
        return {
            "|".join([sample.name, *sample.labels.values()]): sample.value
            for metric in self.collector().collect()
            for sample in metric.samples
        }


def raising(error: Exception) -> Callable[..., Any]:
    def fail() -> Any:
        raise error

    return fail


def test_lag_by_partition_under_the_name_of_the_log() -> None:
    for url, name in (("redis://log", "redis_stream_consumer_lag"), ("kafka://log", "kafka_consumer_lag")):
        rig = Rig(event_log_url=url)
        rig.publish(lag={0: 30, 3: 20}, drain_rate=25.0)
        found = rig.series()
        assert {key: value for key, value in found.items() if "consumer_lag" in key} == {
            f"{name}|0": 30,
            f"{name}|3": 20,
        }
        assert (found["sluice_lag_events"], found["sluice_lag_seconds"]) == (50, 2.0)
        assert (found["sluice_no_progress_seconds|0"], found["sluice_no_progress_seconds|3"]) == (7.0, 7.0)


def test_a_lag_that_nothing_drains_has_no_end_and_no_lag_takes_no_time() -> None:
    rig = Rig()
    rig.publish(lag={0: 30}, drain_rate=0.0)
    assert "sluice_lag_seconds" not in rig.series()
    rig.publish(lag={0: 0}, drain_rate=0.0)
    assert rig.series()["sluice_lag_seconds"] == 0


def test_a_lag_without_news_disappears() -> None:
    rig = Rig()
    rig.publish(lag={0: 30})
    rig.clock.advance(STALE_PERIODS * rig.settings.regulate_seconds - 0.1)
    assert rig.series()["sluice_lag_events"] == 30
    rig.clock.advance(0.2)
    found = rig.series()
    assert "sluice_lag_events" not in found
    assert found["sluice_controller_age_seconds"] == pytest.approx(STALE_PERIODS * rig.settings.regulate_seconds + 0.1)
    # And one that the controller does not know is not shown as it was
    rig.publish(lag={0: 30})
    rig.publish(lag=None)
    assert "sluice_lag_events" not in rig.series()


def test_alarms_are_shown_while_the_controller_speaks() -> None:
    rig = Rig()
    rig.store.publish_rate(
        base_rate=1000.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=rig.clock.now(), actor="test",
        alarms=[Alarm(AlarmCode.LOG_TAIL_LOST, Severity.CRITICAL, "what", "where")],
    )  # fmt: skip
    found = rig.series()
    assert found["sluice_alarm_active|log_tail_lost"] == 1
    assert found["sluice_alarm_active|replicas_missing"] == 0
    rig.clock.advance(STALE_PERIODS * rig.settings.regulate_seconds + 0.1)
    assert not [name for name in rig.series() if name.startswith("sluice_alarm_active")]


def test_permissions_refill_between_calls_up_to_the_burst() -> None:
    rig = Rig()
    assert "rate_limiter_available_permissions" not in rig.series()
    rig.publish(lag={0: 0}, rate=100.0)
    rig.bucket.take(needed=80, wanted=80, process="p")
    capacity = rig.series()["rate_limiter_capacity_permissions"]
    assert rig.series()["rate_limiter_available_permissions"] == capacity - 80
    rig.clock.advance(0.5)
    assert rig.series()["rate_limiter_available_permissions"] == capacity - 30
    rig.clock.advance(60)
    assert rig.series()["rate_limiter_available_permissions"] == capacity


def test_facts_of_postgres_are_forgotten_and_a_limit_that_is_none_is_absent() -> None:
    rig = Rig()
    rig.counters.note({"dead_letters": 3, "dead_letter_conflicts": 2, "database_bytes": None}, seconds=FACTS_SECONDS)
    found = rig.series()
    assert found["sluice_dead_letters_open"] == 3
    assert found["sluice_dead_letter_conflicts_open"] == 2
    assert "sluice_database_bytes" not in found
    assert found["sluice_redis_memory_bytes|log"] == 5
    assert "sluice_redis_memory_limit_bytes|log" not in found
    rig.clock.advance(FACTS_SECONDS + 1)
    assert "sluice_dead_letters_open" not in rig.series()


def test_a_server_that_is_away_is_asked_once_a_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a control server that does not answer: each question costs its time-out
    rig = Rig()
    rig.publish(lag={0: 1})
    rig.server.is_unavailable = True
    content, asked = rig.server.content, []

    def counted() -> Any:
        asked.append(1)
        return content()

    monkeypatch.setattr(rig.server, "content", counted)
    found = rig.series()
    assert len(asked) == 1
    # Then what others know is shown nevertheless
    assert set(found) == {"sluice_redis_memory_bytes|log", f"sluice_build_info|{__version__}|redis"}


def test_a_scrape_asks_the_control_server_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system with everything that a scrape shows
    rig = Rig()
    rig.publish(lag={0: 1})
    rig.bucket.take(needed=1, wanted=1, process="p")
    rig.counters.add({"rows": 1}, sender="s", number=1)
    rig.counters.note({"dead_letters": 3}, seconds=FACTS_SECONDS)
    asked: list[str] = []

    def counted(name: str, method: Callable[[], Any]) -> Any:
        asked.append(name)
        return method()

    for adapter, names in ((rig.store, ("state", "pause_state")), (rig.counters, ("read", "memory"))):
        for name in names:
            monkeypatch.setattr(adapter, name, partial(counted, name, getattr(adapter, name)))
    # When it is scraped, then the state is one question, and the rest is another one
    found = rig.series()
    assert asked == ["state", "read"]
    assert {"sluice_lag_events", "sluice_dead_letters_open", "rate_limiter_available_permissions",
            "sluice_drained_events_total|stored", "sluice_redis_memory_bytes|control"} <= set(found)  # fmt: skip


def test_a_log_that_is_away_hides_nothing_else() -> None:
    def away() -> tuple[int, int]:
        raise StoreUnavailableError

    rig = Rig()
    rig.publish(lag={0: 1})
    rig.log_memory = away
    found = rig.series()
    assert "sluice_redis_memory_bytes|log" not in found
    assert found["sluice_lag_events"] == 1
    assert found["sluice_redis_memory_bytes|control"] == 0


def test_a_refused_question_leaves_out_its_own_values_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    # Given a control server that refuses to read the control state
    rig = Rig()
    rig.publish(lag={0: 1})
    rig.counters.add({"rows": 3}, sender="s", number=1)
    refused = StoreRefusesError("the control store (Redis) refuses: WRONGTYPE")
    state, rig.store.state = rig.store.state, raising(refused)  # type: ignore[method-assign]
    collector = rig.collector()
    # Then all that was answered is shown, and the one that was not is named in the log, once
    for _ in range(3):
        found = {sample.name for metric in collector.collect() for sample in metric.samples}
        assert "sluice_drained_events_total" in found
        assert "rate_limiter_rate_limit" not in found
    assert [record.getMessage() for record in caplog.records] == [
        f"left out of the metrics: the control state: {refused}"
    ]
    # And again after it was answered in between
    rig.store.state = state  # type: ignore[method-assign]
    assert len(list(collector.collect())) > len(found)
    rig.store.state = raising(refused)  # type: ignore[method-assign]
    list(collector.collect())
    assert len(caplog.records) == 2
