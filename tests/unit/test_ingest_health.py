"""Health as a pure function."""

from dataclasses import replace
from typing import Any

import pytest

from ingest.appender import LogStatus
from ingest.health import HealthSources, health_document
from pipeline.follower import ControlSnapshot
from pipeline.health.snapshot import Outlook, Traffic
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.control import ControlState, Pause, PublishedRate
from support.control import control_settings

REFUSED = "the control store (Redis) refuses: the user of REDIS_URL has no right for this (NOPERM)"
RATE = PublishedRate(
    version=7, rate=800.0, base_rate=800.0, mode=Mode.NORMAL, lag=17, published_at=100.0, lag_known_at=100.0
)
STATE = ControlState(rate=RATE, pauses=(), breaker=BreakerState.CLOSED, time=100.0, generation=1, floor_rate=100.0)
WELL = HealthSources(
    wall=1_700_000_000.0,
    now=1000.0,
    control=ControlSnapshot(STATE, read_at=999.5, published_at=998.0),
    store_problem=None,
    settings=control_settings("redis://nowhere", event_log_url="kafka://nowhere:1"),
    log=LogStatus(answers=True, is_full=False, problem=None),
    rate=800.0,
    available_permissions=300,
    is_local=False,
)


def _with_state(**changes: Any) -> HealthSources:
    return replace(WELL, control=ControlSnapshot(replace(STATE, **changes), read_at=999.5, published_at=998.0))


def _with_rate(**changes: Any) -> HealthSources:
    return _with_state(rate=replace(RATE, **changes))


def _pause(reason: PauseReason) -> HealthSources:
    breaker = BreakerState.OPEN if reason is PauseReason.BREAKER else BreakerState.CLOSED
    return _with_state(pauses=(Pause(reason, 3, 100.0, "ann@host", "because"),), breaker=breaker)


def test_all_is_well() -> None:
    assert health_document(WELL) == {
        "status": "healthy",
        "consumerLag": 17,
        "rateLimit": 800.0,
        "rateOverride": None,
        "availablePermissions": 300,
        "circuitBreaker": "closed",
        "consumption": "running",
        "controllerAgeSeconds": 2.0,
        "eventLog": "kafka",
        "offered": None,
        "admitted": None,
        "refused": None,
        "stored": None,
        "drainSeconds": None,
        "reasons": [],
    }


@pytest.mark.parametrize(
    ("sources", "status", "word"),
    [
        (_with_rate(mode=Mode.DEGRADED, lag=20_000), "degraded", "20,000 events wait"),
        (_with_rate(mode=Mode.CRITICAL, lag=60_000), "critical", "60,000 events wait"),
        (_with_rate(mode=Mode.UNKNOWN, lag=None), "degraded", "does not know the lag"),
        (_with_state(rate=None), "degraded", "does not know the lag"),
        (_with_state(breaker=BreakerState.OPEN), "critical", "breaker is open"),
        (_with_state(breaker=BreakerState.HALF_OPEN), "critical", "half-open"),
        (_with_state(pauses=None), "degraded", "pauses are unknown"),
        (_pause(PauseReason.OPERATOR), "degraded", "by ann@host: because"),
        (_pause(PauseReason.POISON), "degraded", "poison"),
        (_pause(PauseReason.LOG_GAP), "degraded", "log gap"),
        (_pause(PauseReason.BREAKER), "critical", "breaker is open"),
        (replace(WELL, log=LogStatus(answers=False, is_full=False, problem="gone")), "critical", "does not answer"),
        (replace(WELL, log=LogStatus(answers=True, is_full=True, problem=None)), "critical", "full"),
        (replace(WELL, is_local=True), "degraded", "bucket (Redis) does not answer"),
        (replace(WELL, is_local=True, bucket_problem=REFUSED), "degraded", "bucket (Redis) refuses requests"),
        (replace(WELL, control=None), "degraded", "control store (Redis) does not answer"),
        (replace(WELL, store_problem=REFUSED), "degraded", "control store (Redis) refuses requests"),
        (
            replace(WELL, store_problem="the control store (Redis) does not answer: Timeout"),
            "degraded",
            "control store (Redis) does not answer",
        ),
        (
            replace(WELL, control=ControlSnapshot(STATE, read_at=980.0, published_at=978.0)),
            "degraded",
            "does not answer",
        ),
        (replace(WELL, control=ControlSnapshot(STATE, read_at=999.5, published_at=980.0)), "degraded", "silent since"),
    ],
)
def test_each_trouble_has_its_status_and_its_reason(sources: HealthSources, status: str, word: str) -> None:
    document = health_document(sources)
    assert document["status"] == status
    assert any(word in reason for reason in document["reasons"]), document["reasons"]


def test_health_says_which_process_is_silent() -> None:
    silent = replace(WELL, control=ControlSnapshot(STATE, read_at=999.5, published_at=900.0))
    for waiting, words in (
        (2, "2 tasks wait in its queue"),
        (0, "no task waits in its queue"),
        (None, "UTC: the last"),
    ):
        [reason] = health_document(replace(silent, outlook=Outlook(ticks_waiting=waiting)))["reasons"]
        assert words in reason


def test_one_reason_for_one_trouble() -> None:
    assert len(health_document(_pause(PauseReason.BREAKER))["reasons"]) == 1


def test_what_is_old_is_unknown_and_not_what_it_was() -> None:
    document = health_document(replace(WELL, control=ControlSnapshot(STATE, read_at=980.0, published_at=978.0)))
    assert document["consumerLag"] is None
    assert document["circuitBreaker"] == "unknown"
    assert document["consumption"] == "unknown"
    assert document["controllerAgeSeconds"] == 22.0
    assert document["rateLimit"] == 800.0, "that one this process knows"


def test_a_silent_controller_leaves_the_lag_unknown_but_not_the_breaker() -> None:
    document = health_document(replace(WELL, control=ControlSnapshot(STATE, read_at=999.5, published_at=980.0)))
    assert (document["consumerLag"], document["circuitBreaker"]) == (None, "closed")


def test_all_reasons_are_told() -> None:
    sources = replace(_pause(PauseReason.OPERATOR), is_local=True)
    assert len(health_document(sources)["reasons"]) == 2


def test_where_the_log_is_down_too_clients_get_503_and_that_is_not_unknown() -> None:
    sources = replace(
        WELL,
        store_problem="the control store (Redis) does not answer: Timeout",
        log=LogStatus(answers=False, is_full=False, problem="gone"),
    )
    assert health_document(sources)["status"] == "critical"


def test_traffic_and_pace_of_the_last_seconds_are_figures_of_the_answer() -> None:
    # Given what this process saw of the whole system
    traffic = Traffic(admitted=300.04, refused=100.0, refused_share=0.25, unavailable_share=0.0)
    outlook = Outlook(traffic, {0: 500}, 250.0, {0: 1.0}, None)
    document = health_document(replace(_with_rate(lag=500), outlook=outlook))
    # Then it is there, and a quarter refused is not "healthy"
    assert [document[name] for name in ("offered", "admitted", "refused", "stored", "drainSeconds")] == [
        400.0,
        300.0,
        100.0,
        250.0,
        2.0,
    ]
    assert (document["status"], document["consumerLag"]) == ("degraded", 500)
    assert document["reasons"][0].startswith("At its limit: 25 % refused in the last minute")


def test_a_partition_that_stores_nothing_is_not_called_running() -> None:
    outlook = Outlook(None, {0: 5}, 0.0, {0: 31.0}, None)
    document = health_document(replace(WELL, outlook=outlook))
    assert (document["status"], document["consumption"]) == ("critical", "stalled")


def test_a_loop_of_this_process_that_has_ended_is_named() -> None:
    stands = "the appender of this process makes no progress since 16 s"
    document = health_document(replace(WELL, loop_problems=(stands,)))
    assert (document["status"], document["reasons"]) == ("degraded", [f"T{stands[1:]}"])
