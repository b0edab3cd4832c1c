"""The snapshot: who is believed about what."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.health.snapshot import HealthInputs, Outlook, make_inputs
from pipeline.names import BreakerState, Mode, Severity
from pipeline.ports.control import Alarm, Consumption, ControlState, PublishedRate
from support.control import control_settings

SETTINGS = control_settings("redis://nowhere")
ALARM = Alarm("hole", Severity.CRITICAL, "a hole", "the log", 1)
RATE = PublishedRate(
    version=7, rate=800.0, base_rate=800.0, mode=Mode.NORMAL, lag=7, published_at=100.0, lag_known_at=100.0,
    consumption=Consumption({0: 5, 1: 2}, 100, 40.0, {0: 31.0}), alarms=(ALARM,),
)  # fmt: skip
STATE = ControlState(rate=RATE, pauses=(), breaker=BreakerState.CLOSED, time=102.0, generation=1, floor_rate=90.0)
BY_LOG = Outlook(lag_by_partition={0: 3, 1: 9}, drain_rate=50.0, no_progress_seconds={1: 40.0})


def made(state: ControlState | None = STATE, outlook: Outlook = BY_LOG, **changes: Any) -> HealthInputs:
    known: dict[str, Any] = {"at": 102.0, "controller_age": 2.0, "store_problem": None, "log_problem": None}
    return make_inputs(SETTINGS, state=state, outlook=outlook, **known | changes)


def test_the_controller_is_believed_about_lag_and_progress() -> None:
    inputs = made()
    assert (inputs.lag_by_partition, inputs.lag) == ({0: 5, 1: 2}, 7)
    assert dict(inputs.no_progress_seconds) == {0: 31.0}
    assert inputs.drain_rate == 50.0
    assert (inputs.mode, inputs.alarms, inputs.floor_rate) == (Mode.NORMAL, (ALARM,), 90.0)


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({}, 1),
        ({"log_replicas_min": 1}, 2),
        ({"event_log_url": "kafka://h:1"}, 1),
        ({"event_log_url": "kafka://h:1", "kafka_replication": 3}, 2),
    ],
)
def test_how_many_servers_have_an_event_is_that_of_the_settings(changes: dict[str, Any], copies: int) -> None:
    known: dict[str, Any] = {"at": 102.0, "controller_age": 2.0, "store_problem": None, "log_problem": None}
    inputs = make_inputs(replace(SETTINGS, **changes), state=STATE, outlook=BY_LOG, **known)
    assert inputs.log_copies == copies


def test_a_log_that_was_told_of_commits_that_postgresql_lost_hides_no_lag() -> None:
    assert made(outlook=Outlook(lag_by_partition={0: 0, 1: 0})).lag == 7


def test_without_the_logs_word_the_controllers_pace_counts() -> None:
    inputs = made(outlook=Outlook())
    assert (inputs.lag, inputs.drain_rate) == (7, 40.0)
    older = made(replace(STATE, rate=replace(RATE, consumption=None)), Outlook())
    assert (older.lag_by_partition, older.lag) == (None, 7)


def test_a_controller_of_an_older_version_leaves_progress_to_the_log() -> None:
    rate = replace(RATE, consumption=Consumption({0: 5, 1: 2}, 100, 40.0))
    assert dict(made(replace(STATE, rate=rate)).no_progress_seconds) == {1: 40.0}


def test_of_a_silent_controller_nothing_is_shown_as_the_present() -> None:
    inputs = made(controller_age=15.1)
    assert inputs.is_controller_silent
    assert (inputs.alarms, inputs.mode, inputs.lag) == ((), Mode.UNKNOWN, 12)
    assert dict(inputs.no_progress_seconds) == {1: 40.0}
    assert made(outlook=Outlook(), controller_age=15.1).lag is None


def test_a_high_lag_needs_no_controller_to_be_high() -> None:
    assert made(outlook=Outlook(lag_by_partition={0: 60_000}), controller_age=None).mode is Mode.CRITICAL
    assert made(outlook=Outlook(lag_by_partition={0: 10_000}), controller_age=None).mode is Mode.DEGRADED


def test_without_the_control_store_all_of_it_is_unknown_but_for_the_log() -> None:
    inputs = made(None, store_problem="refused")
    assert (inputs.rate, inputs.breaker, inputs.pauses, inputs.consumption) == (
        None,
        BreakerState.UNKNOWN,
        None,
        "stalled",
    )
    assert (inputs.lag, inputs.floor_rate) == (12, SETTINGS.rate_min)
