"""Whoever shows health shows the same verdict: the answer over HTTP, the page, the terminal and Celery's command."""

from dataclasses import replace

import pytest

from ingest import health
from ingest.dashboard import view
from pipeline.__main__ import exit_status, screen
from pipeline.health.judge import judge
from pipeline.health.snapshot import HealthInputs
from pipeline.names import BreakerState, Health, Mode, Severity
from pipeline.ports.control import Alarm
from pipeline.status import SystemStatus, status_document
from support.health import BREAKER, BY_HAND, HEALTHY, OVERRIDE, REFUSING
from tasks import remote

SNAPSHOTS = {
    "healthy": HEALTHY,
    "breaker": replace(HEALTHY, breaker=BreakerState.OPEN, pauses=(BREAKER,), rate=100.0),
    "paused": replace(HEALTHY, pauses=(BY_HAND,), mode=Mode.CRITICAL, lag=60_000),
    "pauses unknown": replace(HEALTHY, pauses=None, breaker=BreakerState.UNKNOWN),
    "behind": replace(HEALTHY, mode=Mode.DEGRADED, lag=16_000, rate=300.0, override=OVERRIDE),
    "nothing stored": replace(HEALTHY, no_progress_seconds={0: 50.0}),
    "refusing": replace(HEALTHY, traffic=REFUSING),
    "silent": replace(HEALTHY, controller_age=None, mode=Mode.UNKNOWN, rate=None),
    "alarm": replace(HEALTHY, alarms=(Alarm("new", Severity.CRITICAL, "Something new", "there", 3),)),
    "log down": replace(HEALTHY, log_problem="refused"),
    "log full": replace(HEALTHY, is_log_full=True, is_bucket_unavailable=True),
    "store down": replace(HEALTHY, store_problem="refused", pauses=None, breaker=BreakerState.UNKNOWN),
    "both down": replace(HEALTHY, store_problem="refused", log_problem="refused", pauses=None, lag=None),
    "both down, in ingest": replace(
        HEALTHY, store_problem="refused", log_problem="refused", pauses=None, lag=None, serves_clients=True
    ),
    "loop": replace(HEALTHY, loop_problems=("the appender of this process makes no progress since 16 s",)),
    "database silent": replace(HEALTHY, database_problem="refused"),
}
EXITS = {Health.HEALTHY: 0, Health.DEGRADED: 1, Health.CRITICAL: 2, Health.UNKNOWN: 3}


@pytest.mark.parametrize("inputs", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_the_same_snapshot_has_the_same_status_and_reasons_everywhere(inputs: HealthInputs) -> None:
    # Given a snapshot and the verdict on it
    verdict = judge(inputs)
    status, whats = verdict.status.value, [problem.what for problem in verdict.problems]
    # When everybody shows it
    over_http = health.document_of(inputs)
    page = view.document_of(inputs)
    terminal = SystemStatus(inputs)
    as_json = status_document(terminal)
    celery = remote._told(terminal)
    # Then status and reasons are the same
    assert {over_http["status"], page["status"], as_json["status"], celery["document"]["status"]} == {status}
    assert over_http["reasons"] == whats
    for document in (page, as_json, celery["document"]):
        assert [reason["what"] for reason in document["reasons"]] == whats
    for text in (screen(terminal, 10_000), celery["ok"]):
        assert text.startswith(status.upper())
        assert text.count("\n! ") == len(whats)
    shown = [line.split(": ", 1)[1] for line in screen(terminal, 10_000).splitlines() if line.startswith("! ")]
    assert shown == whats
    assert exit_status(terminal) == EXITS[verdict.status]
    # And so are the words for consumption and breaker, and the figures
    for document in (page, as_json):
        assert {name: document[name] for name in SHARED} == {name: over_http[name] for name in SHARED}
    assert over_http["stored"] == page["drainRate"]
    assert over_http["drainSeconds"] == (None if page["secondsToEmpty"] is None else round(page["secondsToEmpty"], 1))


SHARED = ("consumerLag", "circuitBreaker", "consumption", "eventLog", "offered", "admitted", "refused")


def test_the_snapshots_have_every_status() -> None:
    assert {judge(inputs).status for inputs in SNAPSHOTS.values()} == set(Health)


def test_what_is_offered_admitted_and_refused_is_shown_in_figures() -> None:
    inputs = replace(HEALTHY, traffic=REFUSING)
    document = health.document_of(inputs)
    assert [document[name] for name in ("offered", "admitted", "refused", "stored")] == [1000.0, 900.0, 100.0, 800.0]
    line = "offered      1,000 events/s; admitted 900, refused 100 (10 % in the last minute)"
    assert line in screen(SystemStatus(inputs)).splitlines()
    assert line in remote._told(SystemStatus(inputs))["ok"]
    unknown = replace(HEALTHY, traffic=None)
    assert health.document_of(unknown)["offered"] is None
    assert "offered      unknown" in screen(SystemStatus(unknown))
