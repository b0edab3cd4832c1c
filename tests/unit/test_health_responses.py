"""What the system does about each problem by itself, and the command to begin with."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.health.judge import judge
from pipeline.health.responses import response_to
from pipeline.health.snapshot import Traffic
from pipeline.names import AlarmCode, BreakerState, Mode, PauseReason, ProblemCode, Severity, SinkName
from pipeline.ports.control import Alarm, Pause
from pipeline.status import problem_documents
from support.health import BREAKER, HEALTHY, NOW, OVERRIDE

CODES = [code.value for code in (*ProblemCode, *AlarmCode)]


@pytest.mark.parametrize("code", CODES)
def test_every_problem_has_an_answer_to_what_happens_by_itself(code: str) -> None:
    text = response_to(code).by_itself
    assert text[0].isupper(), text
    assert text.endswith("."), text


def test_a_reason_of_a_newer_version_has_none() -> None:
    assert response_to("new") == ("", "")


def first(**changes: Any) -> dict[str, str | None]:
    return problem_documents(judge(replace(HEALTHY, **changes)).problems)[0]


def test_the_command_of_a_pause_fits_its_reason_and_its_partition() -> None:
    def command(reason: PauseReason, partition: int | None) -> str | None:
        return first(pauses=(Pause(reason, 4, NOW - 10, "ann@host", "why", partition=partition),))["command"]

    assert command(PauseReason.OPERATOR, None) == "celery -A tasks.app control resume_consumption"
    assert command(PauseReason.POISON, 3) == "celery -A tasks.app inspect poison 3"
    assert command(PauseReason.LOG_GAP, 2) == "celery -A tasks.app inspect gap 2"


def test_the_command_of_an_alarm_names_its_partition() -> None:
    alarm = Alarm(AlarmCode.LOG_BEHIND_STORED, Severity.CRITICAL, "The log was put back", "there", 3)
    assert first(alarms=(alarm,))["command"] == "celery -A tasks.app inspect gap 3"


def test_a_refused_database_is_not_told_as_a_refused_schema() -> None:
    alarm = Alarm(AlarmCode.DATABASE_REFUSED, Severity.CRITICAL, "The database is refused: it is a standby", "there")
    said = first(alarms=(alarm,))
    assert said["command"] == "python -m sluice doctor"
    assert "schema" not in (said["byItself"] or "")
    assert said["runbook"] == "database-refused"


def test_refusals_by_a_rate_of_an_operator_end_with_that_rate() -> None:
    refusing = Traffic(admitted=900.0, refused=100.0, refused_share=0.1, unavailable_share=0.0)
    assert first(traffic=refusing)["command"] == "celery -A tasks.app inspect throttle"
    assert first(traffic=refusing, override=OVERRIDE)["command"] == "celery -A tasks.app control clear_rate_limit"


def test_an_open_breaker_says_what_goes_on() -> None:
    said = first(breaker=BreakerState.OPEN, pauses=(BREAKER,), rate=100.0)
    assert "tries a small write" in (said["byItself"] or "")
    assert (said["command"] or "").startswith('psql "$DATABASE_URL"')
    archive = first(breaker=BreakerState.OPEN, pauses=(BREAKER,), rate=100.0, sink=SinkName.ARCHIVE)
    assert archive["command"] == "python -m sluice doctor"


def test_a_lag_says_that_the_rate_falls() -> None:
    assert "lowers the rate" in (first(mode=Mode.DEGRADED, lag=16_000)["byItself"] or "")
