"""The one judge: what is wrong, in words: a table of situations."""

from dataclasses import replace
from typing import Any

import pytest
from redis import exceptions

from pipeline.errors import StoreUnavailableError
from pipeline.flow.refusals import Refusals, Refused
from pipeline.health.judge import Problem, judge
from pipeline.health.snapshot import LevelTraffic, ProtocolTraffic, Traffic
from pipeline.names import (
    AlarmCode,
    BreakerState,
    Health,
    Level,
    Mode,
    PauseReason,
    ProblemCode,
    ProtocolName,
    Severity,
)
from pipeline.policies.drain_time import DrainTimePolicy
from pipeline.ports.control import Alarm, Pause
from pipeline.redis_link import failure_text
from pipeline.settings import Settings
from support.health import BREAKER, BY_HAND, HEALTHY, NOW, OVERRIDE, REFUSING

LOCKED = Alarm("locked", Severity.CRITICAL, "log_events is locked by pid 7 of ann", "pid 7: SELECT 1", 0)
GAP = Pause(PauseReason.LOG_GAP, 5, NOW - 10, "worker/2", "a hole", partition=3)
POISONED = Pause(PauseReason.POISON, 6, NOW - 10, "worker/2", "a batch", partition=1)
NEWER = Pause(PauseReason.UNKNOWN, 7, NOW - 10, "worker/2", "too much", word="quota")

STORE_REFUSES = "the control store (Redis) refuses: WRONGTYPE Operation against a key holding the wrong kind of value"
LOG_REFUSES = "the event log (Redis) refuses: WRONGTYPE Operation against a key holding the wrong kind of value"
LOG_NOT_OURS = "the event log (Redis) can't be used: its key 'sluice:log:id' is not Sluice's: 'x'"
REPLICAS_MISSING = "the event log (Redis) can't be used: it has no replica that answers, and LOG_REPLICAS_MIN=1"


@pytest.mark.parametrize(
    ("changes", "worst", "words"),
    [
        ({}, "healthy", ()),
        (
            {"breaker": BreakerState.OPEN, "pauses": (BREAKER,), "rate": 100.0},
            "critical",
            ("PostgreSQL fails since 22:13:10 UTC", "lowest (100/s)", "connection refused"),
        ),
        ({"breaker": BreakerState.HALF_OPEN, "pauses": (BREAKER,)}, "critical", ("half-open",)),
        (
            {"pauses": (BY_HAND,)},
            "degraded",
            ("since 22:13:10 UTC by ann@host: moving the disk", "control resume_consumption"),
        ),
        ({"pauses": (GAP,)}, "degraded", ("of partition 3", "its events", "inspect gap 3", "skip_gap 3 FROM TO")),
        ({"pauses": (POISONED,)}, "degraded", ("of partition 1", "inspect poison 1", "accept_poison 1")),
        ({"pauses": (NEWER,)}, "degraded", ("paused (quota)", "newer version", "resume_consumption")),
        ({"pauses": None, "breaker": BreakerState.UNKNOWN}, "degraded", ("emptied", "control worker")),
        ({"controller_age": 15.1}, "degraded", ("silent since 22:13:04 UTC", "Beat and the control worker: do both")),
        (
            {"controller_age": 15.1, "ticks_waiting": 3},
            "degraded",
            ("22:13:04 UTC; 3 tasks wait in its queue", "the control worker: it takes no tasks, so it does not run"),
        ),
        (
            {"controller_age": 15.1, "ticks_waiting": 0},
            "degraded",
            ("22:13:04 UTC; no task waits in its queue", "Beat, which sends no ticks; if it does, the log of the"),
        ),
        (
            {"controller_age": 15.1, "store_memory": (256 << 20, 256 << 20), "ticks_waiting": 3},
            "degraded",
            (
                "22:13:04 UTC; the control store (Redis) is at its memory limit (256 of 256 MB), and takes no tasks",
                "the memory of the server of REDIS_URL",
            ),
        ),
        (
            {"controller_age": 15.1, "store_memory": (255 << 20, 256 << 20), "ticks_waiting": 3},
            "degraded",
            ("22:13:04 UTC; 3 tasks wait in its queue",),
        ),
        ({"controller_age": 15.1, "store_memory": (9 << 20, 0)}, "degraded", ("Beat and the control worker: do both",)),
        ({"controller_age": None, "rate": None}, "degraded", ("has published no rate yet",)),
        ({"mode": Mode.UNKNOWN, "lag": None}, "degraded", ("does not know the lag",)),
        ({"mode": Mode.DEGRADED, "lag": 16_000}, "degraded", ("16,000 events wait", "about 20 s", "now 800/s")),
        ({"mode": Mode.CRITICAL, "lag": 60_000, "drain_rate": 0.0}, "critical", ("far behind", "at 0, the workers")),
        ({"log_problem": "refused"}, "critical", ("event log (redis) does not answer", "refused")),
        ({"log_problem": LOG_REFUSES}, "critical", ("event log (redis) refuses requests", "it says: WRONGTYPE")),
        (  # a log that answers is not called silent
            {"log_problem": "the event log (Redis) accepts no events: MISCONF Errors writing to the AOF file"},
            "critical",
            (
                "event log (redis) accepts no events (MISCONF Errors writing to the AOF file): clients get 503",
                "log-down",
            ),
        ),
        ({"store_problem": "refused"}, "degraded", ("control store (Redis) does not answer", "REDIS_URL")),
        (
            {"store_problem": "the control store (Redis) refuses: MISCONF Errors writing to the AOF file"},
            "degraded",
            ("control store (Redis) refuses requests: rate", "it says: MISCONF Errors writing to the AOF file"),
        ),
        (  # a rate by hand below the floor is not the floor
            {"breaker": BreakerState.OPEN, "pauses": (BREAKER,), "rate": 50.0, "override": OVERRIDE},
            "critical",
            ("the rate is 50/s, set by an operator",),
        ),
        (
            {"mode": Mode.DEGRADED, "lag": 16_000, "rate": 300.0, "override": OVERRIDE},
            "degraded",
            ("300/s, set by an operator",),
        ),
        ({"database_problem": "refused"}, "degraded", ("dead letters are not counted",)),
    ],
)
def test_a_situation_in_words(changes: dict[str, Any], worst: str, words: tuple[str, ...]) -> None:
    # Given a situation
    verdict = judge(replace(HEALTHY, **changes))
    # Then one problem says it
    text = " ".join(f"{problem.what} | {problem.look_at}" for problem in verdict.problems)
    assert verdict.status == worst
    assert len(verdict.problems) == (1 if words else 0)
    assert [word for word in words if word not in text] == []


def test_the_worst_comes_first() -> None:
    problems = judge(replace(HEALTHY, controller_age=None, breaker=BreakerState.OPEN, pauses=(BREAKER,))).problems
    assert [problem.severity for problem in problems] == ["critical", "degraded"]


def test_a_pause_comes_before_the_lag_that_it_makes_and_no_end_is_promised() -> None:
    # Given somebody who paused consumption, and a backlog that has become critical
    status = replace(HEALTHY, pauses=(BY_HAND,), mode=Mode.CRITICAL, lag=60_000, rate=100.0, drain_rate=70.0)
    pause, lag = judge(status).problems
    # Then the headline is the cause, and what the lag says is not that the workers should be looked at
    assert pause.what.startswith("Consumption is paused (operator)")
    assert lag.what == "Consumers are far behind: 60,000 events wait; the rate is 100/s"
    assert "workers" not in lag.look_at
    assert status.seconds_to_empty is None


def test_an_open_breaker_promises_to_resume_only_what_it_stopped() -> None:
    opened = replace(HEALTHY, breaker=BreakerState.OPEN, pauses=(BREAKER,), rate=100.0)
    assert "all resumes by itself" in judge(opened).problems[0].look_at
    beneath = judge(replace(opened, pauses=(BREAKER, BY_HAND))).problems[0].look_at
    assert "the breaker closes by itself, but consumption stays paused (operator)" in beneath
    partly = judge(replace(opened, pauses=(BREAKER, GAP))).problems[0].look_at
    assert "all resumes by itself, except what else is paused (log gap of partition 3)" in partly


def test_a_pause_for_records_that_are_missing_does_not_say_that_none_is_lost() -> None:
    gap, by_hand = (judge(replace(HEALTHY, pauses=(pause,))).problems[0] for pause in (GAP, BY_HAND))
    assert "none is lost" not in gap.by_itself
    assert "since records are missing" in gap.by_itself
    assert "Accepted events wait in the event log, and none is lost." in by_hand.by_itself


def test_a_refused_database_is_the_cause_and_an_open_breaker_its_effect() -> None:
    # Given a breaker that opened while PostgreSQL was down, and a PostgreSQL that is back with another password
    opened = replace(HEALTHY, breaker=BreakerState.OPEN, pauses=(BREAKER,), rate=100.0)
    code, what = AlarmCode.DATABASE_REFUSED, "The database is refused: wrong password"
    refused = Alarm(code, Severity.CRITICAL, what, "docs/database.md")
    # Then the cause comes first, and the breaker does not name its own, older one
    cause, effect = judge(replace(opened, alarms=(refused,))).problems
    assert (cause.code, cause.what) == (code, what)
    assert effect.code == ProblemCode.BREAKER_OPEN
    assert effect.look_at.startswith("why PostgreSQL is refused: the breaker only follows from that. Once a write")
    assert "connection refused" not in effect.look_at
    # And a reader that does not know the breaker shows the cause all the same, once
    codes = [one.code for one in judge(replace(opened, alarms=(refused,), store_problem="away")).problems]
    assert codes.count(code) == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "the full rate"),
        ({"rate": 400.0}, "lag is low"),  # the policy's own words
        ({"rate": 100.0, "breaker": BreakerState.OPEN}, "breaker is open"),
        ({"rate": 50.0, "breaker": BreakerState.OPEN, "override": OVERRIDE}, "set by an operator"),
        ({"rate": 50.0, "override": OVERRIDE}, "set by an operator"),
        ({"rate": 400.0, "mode": Mode.CRITICAL}, "lag is low"),
        ({"rate": 100.0, "mode": Mode.UNKNOWN}, "lag is unknown"),
        ({"rate": 100.0, "mode": Mode.UNKNOWN, "controller_age": 15.1}, "controller is silent"),
        ({"rate": 100.0, "controller_age": None}, "controller is silent"),
        ({"rate": 50.0, "override": OVERRIDE, "controller_age": 15.1}, "set by an operator"),
        ({"rate": 100.0, "store_problem": "away"}, "last known, falling"),
        ({"rate": None, "store_problem": "away"}, "unknown"),
    ],
)
def test_why_the_rate_is_what_it_is(changes: dict[str, Any], why: str) -> None:
    explained = replace(HEALTHY.explanation, reason="lag is low")
    assert replace(HEALTHY, explanation=explained, **changes).rate_decided_by == why


def test_what_a_part_said_is_said_once() -> None:
    said = "Error 111 connecting to 127.0.0.1:1. Connection refused."
    error = f"the control store (Redis) does not answer at REDIS_URL: {said}"
    [problem] = judge(replace(HEALTHY, store_problem=error)).problems
    assert problem.look_at == f"the server of REDIS_URL; it says: {said}"
    [problem] = judge(replace(HEALTHY, store_problem=str(StoreUnavailableError()))).problems
    assert problem.look_at == "the server of REDIS_URL"


@pytest.mark.parametrize(
    ("error", "does"),
    [
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), "refuses requests"),
        (exceptions.TimeoutError("Timeout reading from socket"), "does not answer"),
    ],
)
@pytest.mark.parametrize(("name", "field"), [("redis_url", "store_problem"), ("event_log_url", "log_problem")])
def test_health_reads_what_the_adapters_of_redis_write(error: Exception, does: str, name: str, field: str) -> None:
    # Given the text that an adapter makes of an error
    found: dict[str, Any] = {field: failure_text(error, Settings(), name)}
    # When health shows it, then it knows what the server does, and repeats only the reason
    [problem] = judge(replace(HEALTHY, **found)).problems
    assert f") {does}: " in problem.what
    assert problem.look_at.endswith(f"; it says: {error}")


# --- Nothing is stored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "No event of partition 0 was stored for 31 s, although 12 wait: no drain runs, or it is held up"),
        ({"lag_by_partition": {0: 12}}, "No event was stored for 31 s, although 12 wait"),
        (
            {"no_progress_seconds": {0: 31.0, 1: 40.0}, "lag_by_partition": {0: 12, 1: 3, 2: 0}},
            "No event of partitions 0, 1 was stored for 31 s, although 15 wait",
        ),
        ({"alarms": (LOCKED,)}, "although 12 wait: log_events is locked by pid 7 of ann"),
        ({"controller_age": None, "mode": Mode.UNKNOWN}, "the controller is silent too"),
        (
            {"controller_age": None, "mode": Mode.UNKNOWN, "store_memory": (5 << 20, 1 << 20)},
            "the control store (Redis) is at its memory limit (5 of 1 MB), and takes no tasks",
        ),
        ({"store_problem": "refused", "mode": Mode.UNKNOWN}, "drains need the control store, which does not answer"),
        ({"log_problem": "refused"}, "drains need the event log, which does not answer"),
        ({"log_problem": LOG_REFUSES}, "drains need the event log, which refuses requests"),
        ({"log_problem": LOG_NOT_OURS}, "drains need the event log, which can't be used"),
        ({"log_problem": REPLICAS_MISSING}, "no drain runs, or it is held up"),  # only appends need them
    ],
)
def test_events_that_wait_while_none_is_stored_are_critical_however_few(changes: dict[str, Any], words: str) -> None:
    # Given a partition that has events and has stored none of them for longer than is allowed
    inputs = replace(HEALTHY, **{"no_progress_seconds": {0: 31.0}, **changes})
    verdict = judge(inputs)
    # Then it is critical, with the likely reason, and nobody says that consumption is running
    assert verdict.status is Health.CRITICAL
    [problem] = [one for one in verdict.problems if one.code == "no_progress"]
    assert words in problem.what
    assert inputs.consumption == "stalled"


def test_what_names_the_cause_is_said_once() -> None:
    other = Alarm("clocks", Severity.DEGRADED, "Two clocks differ by 3 s", "ntp", None)
    verdict = judge(replace(HEALTHY, no_progress_seconds={0: 31.0}, alarms=(LOCKED, other)))
    assert [problem.code for problem in verdict.problems] == ["no_progress", "clocks"]
    assert verdict.problems[0].look_at == "pid 7: SELECT 1"


def test_a_pause_is_the_reason_and_not_a_lack_of_progress() -> None:
    paused = replace(HEALTHY, no_progress_seconds={0: 3000.0}, pauses=(BY_HAND,))
    assert [problem.code for problem in judge(paused).problems] == ["paused"]
    assert paused.consumption == "paused"


def test_a_partition_that_has_stored_lately_is_well() -> None:
    assert judge(replace(HEALTHY, no_progress_seconds={0: 29.0})).status is Health.HEALTHY


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "At its limit: 10 % refused in the last minute: clients offer more than the rate of 1,000/s"),
        ({"override": OVERRIDE, "rate": 50.0}, "a rate set by an operator holds at 50/s, by ann@host: a test"),
        ({"mode": Mode.DEGRADED, "rate": 400.0}, "the lag is high and holds the rate at 400/s"),
        ({"mode": Mode.UNKNOWN}, "the lag is unknown, and the rate falls"),
        ({"mode": Mode.UNKNOWN, "controller_age": 60.0}, "the controller is silent, and the rate falls"),
        ({"breaker": BreakerState.OPEN, "pauses": (BREAKER,)}, "the open breaker allows only the lowest rate"),
        ({"is_bucket_unavailable": True}, "the token bucket does not answer"),
        ({"is_bucket_unavailable": True, "bucket_problem": STORE_REFUSES}, "the token bucket refuses requests"),
        ({"store_problem": STORE_REFUSES}, "the token bucket refuses requests"),
        ({"store_problem": "refused"}, "the token bucket does not answer"),
    ],
)
def test_much_that_is_refused_is_said_with_its_reason(changes: dict[str, Any], why: str) -> None:
    verdict = judge(replace(HEALTHY, traffic=REFUSING, **changes))
    assert verdict.status is not Health.HEALTHY
    assert why in next(problem for problem in verdict.problems if problem.code == "refusing").what


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("the backlog takes 12.0 s", "the backlog takes 12.0 s and holds the rate at 400/s"),
        ("", "the backlog holds the rate at 400/s"),  # of a silent controller
    ],
)
def test_a_policy_that_does_not_judge_by_the_lag_gives_its_own_reason(reason: str, why: str) -> None:
    drain_time = replace(DrainTimePolicy.make(Settings()).describe(), reason=reason)
    verdict = judge(replace(HEALTHY, traffic=REFUSING, mode=Mode.CRITICAL, rate=400.0, explanation=drain_time))
    assert f": {why}" in next(problem for problem in verdict.problems if problem.code == "refusing").what


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"log_problem": "refused"}, "the event log does not answer"),
        ({"log_problem": LOG_REFUSES}, "the event log refuses requests"),
        ({"log_problem": LOG_NOT_OURS}, "the event log can't be used"),
        ({"log_problem": REPLICAS_MISSING}, "the event log can't be used"),
        ({"is_log_full": True}, "the event log is full"),
        ({}, "ingest was unavailable (503)"),
    ],
)
def test_503_has_other_reasons_than_429(changes: dict[str, Any], why: str) -> None:
    verdict = judge(replace(HEALTHY, traffic=replace(REFUSING, unavailable_share=0.9), **changes))
    assert f"in the last minute: {why}" in next(one for one in verdict.problems if one.code == "refusing").what


def test_a_few_refusals_are_no_problem() -> None:
    shorter = judge(replace(HEALTHY, traffic=replace(REFUSING, share_seconds=10.0)))
    assert (
        "At its limit: 10 % refused in the last 10 s"
        in next(one for one in shorter.problems if one.code == "refusing").what
    )
    few = Traffic(admitted=960.0, refused=40.0, refused_share=0.04, unavailable_share=0.0)
    assert judge(replace(HEALTHY, traffic=few)).status is Health.HEALTHY


HALF = replace(REFUSING, admitted=1000.0, refused=1000.0, refused_share=0.5)
NOISY = Refusals(
    {"192.0.2.1": {"rate": Refused(9, 900)}, "key:shop": {"rate": Refused(1, 80)}}, {"rate": Refused(1, 20)}
)


def refusing(**changes: Any) -> Problem:
    return next(one for one in judge(replace(HEALTHY, **changes)).problems if one.code == ProblemCode.REFUSING)


def test_a_system_at_its_limit_says_who_is_refused_and_what_to_change() -> None:
    found = refusing(traffic=HALF, refusals=NOISY)
    assert found.what == (
        "At its limit: 50 % refused in the last minute: clients offer more than the rate of 1,000/s; accounts refused "
        "most in 15 minutes: 192.0.2.1 (90 %), key:shop (8 %)"
    )
    # The settings: for all, and for the account that is refused most
    assert "raise RATE_MAX" in found.look_at
    assert found.look_at.endswith("`celery -A tasks.app control set_account_limit 192.0.2.1 RATE`")


def test_levels_and_protocols_that_are_refused_are_named_with_their_shares() -> None:
    levels = {
        Level.DEBUG: LevelTraffic(0.0, 400.0),
        Level.INFO: LevelTraffic(300.0, 100.0),
        Level.ERROR: LevelTraffic(9, 0),
    }
    protocols = {
        ProtocolName.LOKI: ProtocolTraffic(100.0, 300.0, 0.0),
        ProtocolName.EVENTS: ProtocolTraffic(50.0, 0.0, 0.0),
    }
    found = refusing(traffic=replace(HALF, levels=levels, protocols=protocols))
    assert found.what.endswith(
        "the rate of 1,000/s; by level in the last 10 s: debug 100 %, info 25 %; "
        "by protocol in the last 10 s: loki 75 %"
    )


def test_many_small_accounts_are_not_listed() -> None:
    many = Refusals({f"192.0.2.{number}": {"rate": Refused(1, 1)} for number in range(100)})
    found = refusing(traffic=HALF, refusals=many)
    assert found.what.endswith("accounts refused most in 15 minutes: many, each less than 5 %")
    assert "set_account_limit" not in found.look_at


def test_accounts_at_their_own_limits_do_not_make_the_system_full() -> None:
    # Given an account whose own limit refuses it, while the rate has room
    own = Refusals({"192.0.2.1": {"share": Refused(9, 900)}})
    found = refusing(traffic=replace(HALF, admitted=100.0), refusals=own)
    assert "At its limit" not in found.what
    assert "accounts offer more than their own limits or fair shares, and the rate has room; " in found.what
    assert found.what.endswith(": 192.0.2.1 (100 %)")
    assert "ACCOUNT_LIMITS" in found.look_at
    # But where the rate is used up, shares of it are no limits of accounts
    assert refusing(traffic=HALF, refusals=own).what.startswith("At its limit: 50 % refused")


@pytest.mark.parametrize(
    "changes",
    [
        {"override": OVERRIDE, "rate": 50.0},
        {"mode": Mode.DEGRADED, "rate": 400.0},
        {"breaker": BreakerState.OPEN, "pauses": (BREAKER,)},
        {"is_bucket_unavailable": True},
        {"traffic": replace(HALF, unavailable_share=0.9)},
    ],
)
def test_a_limit_with_another_reason_is_not_that_of_the_system(changes: dict[str, Any]) -> None:
    found = refusing(**{"traffic": HALF, "refusals": NOISY, **changes})
    assert "At its limit" not in found.what
    # But who is refused is said too, except for 503, which all get
    assert ("15 minutes: 192.0.2.1 (90 %)" in found.what) is ("traffic" not in changes)


@pytest.mark.parametrize("changes", [{}, {"rate": 950.0}])
def test_refusals_of_a_rate_that_has_risen_since_are_not_said_to_be_above_it(changes: dict[str, Any]) -> None:
    # Given a breaker that was open within the last minute: most was refused at the lowest rate
    found = refusing(traffic=replace(HALF, refused_at={100.0: 900.0, 250.0: 50.0, 1000.0: 50.0}), **changes)
    rate = changes.get("rate", 1000.0)
    assert found.what == (
        f"50 % of the offered events were refused in the last minute: most of it while the rate was lower, down to "
        f"100/s; it is {rate:,.0f}/s now"
    )
    assert "inspect sluice" in found.look_at
    assert "RATE_MAX" not in found.look_at


@pytest.mark.parametrize(
    "refused_at", [{}, {1000.0: 900.0}, {100.0: 400.0, 1000.0: 500.0}, {960.0: 900.0}, {2000.0: 900.0}]
)
def test_refusals_at_the_present_rate_are_above_it(refused_at: dict[float, float]) -> None:
    found = refusing(traffic=replace(HALF, refused_at=refused_at))
    assert found.what == "At its limit: 50 % refused in the last minute: clients offer more than the rate of 1,000/s"


# --- Alarms, and what can't be told -------------------------------------------------------------------------------


def test_an_alarm_of_any_version_is_a_problem() -> None:
    strange = Alarm("moon_is_full", Severity.CRITICAL, "The moon is full", "the sky")
    verdict = judge(replace(HEALTHY, alarms=(strange,)))
    assert verdict.status is Health.CRITICAL
    assert [(one.code, one.what, one.look_at) for one in verdict.problems] == [
        ("moon_is_full", "The moon is full", "the sky")
    ]


@pytest.mark.parametrize(
    ("code", "severity", "all_of_it", "by_itself"),
    [
        (
            ProblemCode.LOG_DOWN,
            Severity.CRITICAL,
            "nothing is taken",
            "The processes that are named acknowledge nothing",
        ),
        (ProblemCode.LOG_FULL, Severity.CRITICAL, "nothing is taken", "Stored events leave the log"),
        (
            ProblemCode.BUCKET_UNAVAILABLE,
            Severity.DEGRADED,
            "each ingest",
            "The processes that are named admit their own",
        ),
    ],
)
def test_what_some_ingest_processes_report_is_not_told_of_all(
    code: ProblemCode, severity: Severity, all_of_it: str, by_itself: str
) -> None:
    # Given a process without a problem, and a report of another one
    alarm = Alarm(code, severity, "ingest@other/1: the server does not answer", "reported by ingest@other/1")
    inputs = replace(HEALTHY, alarms=(alarm,), process="ingest@own/1")
    # Then the problem has the name of the other one, and is not told as that of all
    [problem] = judge(inputs).problems
    assert (problem.code, problem.severity) == (code, severity)
    assert problem.what.startswith("ingest@other/1: the server does not answer")
    assert all_of_it not in problem.what
    assert problem.by_itself.startswith(by_itself)
    assert "reported by ingest@other/1" in problem.look_at
    # And the reason of refusals neither
    share = 0.9 if severity is Severity.CRITICAL else 0.0
    found = judge(replace(inputs, traffic=replace(REFUSING, unavailable_share=share))).problems
    assert "some ingest processes" in next(one.what for one in found if one.code == ProblemCode.REFUSING)
    # But what the process found itself is told as before, once
    own = {
        ProblemCode.LOG_DOWN: {"log_problem": "refused"},
        ProblemCode.LOG_FULL: {"is_log_full": True},
        ProblemCode.BUCKET_UNAVAILABLE: {"is_bucket_unavailable": True},
    }[code]
    [problem] = judge(replace(inputs, **own)).problems  # type: ignore[arg-type]
    assert all_of_it in problem.what
    assert not problem.by_itself.startswith("The processes that are named")


def test_an_unknown_lag_is_said_once() -> None:
    alarm = Alarm(AlarmCode.LAG_UNKNOWN, Severity.DEGRADED, "The lag is unknown: gone", "the log's server")
    verdict = judge(replace(HEALTHY, mode=Mode.UNKNOWN, lag=None, alarms=(alarm,)))
    assert [problem.what for problem in verdict.problems] == ["The lag is unknown: gone"]


def test_where_neither_server_answers_only_ingest_knows_what_that_means() -> None:
    cut_off = replace(HEALTHY, log_problem="refused", store_problem="refused")
    assert judge(cut_off).status is Health.UNKNOWN
    assert judge(replace(cut_off, serves_clients=True)).status is Health.CRITICAL


def test_a_paused_partition_excuses_itself_alone() -> None:
    # Given two partitions that store nothing, of which one is paused
    hole = Pause(PauseReason.LOG_GAP, 5, NOW - 10, "worker/1", "offsets 4 to 9 are missing", 0)
    inputs = replace(HEALTHY, no_progress_seconds={0: 90.0, 1: 40.0}, lag_by_partition={0: 12, 1: 7}, pauses=(hole,))
    # Then the pause is named, and the other partition is critical
    stuck, paused = judge(inputs).problems
    assert stuck.what.startswith("No event of partition 1 was stored for 40 s, although 7 wait")
    assert paused.what.startswith("Consumption of partition 0 is paused (log gap) since 22:13:10 UTC")
    assert inputs.consumption == "stalled"


def test_a_log_that_refuses_this_client_says_what_to_change() -> None:
    # Given an error of the log that names the setting, and is longer than a line
    cause = f"broker k:1: it refuses KAFKA_USER='u' by PLAIN: {'long ' * 60}or KAFKA_PASSWORD is wrong"
    inputs = replace(HEALTHY, log_problem=f"the event log (Kafka) can't be used: {cause}", event_log="kafka")
    (problem,) = [one for one in judge(inputs).problems if one.code is ProblemCode.LOG_DOWN]
    # Then the problem has all of it
    assert problem.what == f"The event log (kafka) can't be used ({cause}): clients get 503, nothing is taken"
    assert problem.look_at == "docs/links.md"
    # And one that lacks replicas leads to their page
    short = "the event log (Redis) can't be used: it has no replica that answers, and LOG_REPLICAS_MIN=1"
    (problem,) = [
        one for one in judge(replace(HEALTHY, log_problem=short)).problems if one.code is ProblemCode.LOG_DOWN
    ]
    assert problem.look_at == "docs/replication.md"
