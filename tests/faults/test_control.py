"""What the judge says of samples of a running system: rates, lag, trimming, health, pauses, and standing still."""

from dataclasses import replace

import pytest

from checks.soak.control import PolicyRules, check_control
from checks.soak.found import Place, Stored
from checks.soak.seen import ControlSample, HealthSample, LagSample, PartitionSample, Seen
from checks.soak.windows import Part, Window, Windows

RULES = PolicyRules(rate_max=1000.0, rate_min=100.0, lag_degraded=100, lag_critical=1000, lag_tolerance=10)
SECONDS = 40
WELL = ControlSample(0.0, 1, 1000.0, 1000.0, 50)
HEALTHY = HealthSample(0.0, 0, "healthy", 50, 1000.0, "closed", "running")


def control(**changes: object) -> list[ControlSample]:
    """Five samples a second, with a publication each second."""
    return [
        replace(WELL, at=1000.0 + tick / 5, version=1 + tick // 5, published_at=float(tick // 5), **changes)  # type: ignore[arg-type]
        for tick in range(5 * SECONDS)
    ]


def lags(*, lag: int = 50, moves: bool = True, seconds: float = SECONDS) -> list[LagSample]:
    """Two samples a second of one partition."""
    samples = []
    for tick in range(int(2 * seconds)):
        stored = 10 * tick if moves else 0
        samples.append(LagSample(1000.0 + tick / 2, {0: PartitionSample(0, stored + lag, stored, is_fresh=True)}))
    return samples


def health(**changes: object) -> list[HealthSample]:
    return [replace(HEALTHY, at=1000.0 + tick / 2, **changes) for tick in range(2 * SECONDS)]  # type: ignore[arg-type]


def row(at: float, partition: int = 0) -> Stored:
    return Stored(Place(partition, 0), "c0-1", "", "", stored_at=at)


def said(seen: Seen, rows: list[Stored] | None = None, *windows: Window) -> list[str]:
    return sorted(check_control(seen, rows or [], Windows(windows), RULES))


def test_a_system_that_does_what_it_should_is_no_violation() -> None:
    assert said(Seen(control(), lags(), health())) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lag": 550, "base_rate": 1000.0}, "where the published rate was not what the policy gives for its lag"),
        ({"lag": 5000, "base_rate": 101.0, "rate": 101.0}, "where the published rate was not what the policy gives"),
        ({"lag": None, "base_rate": 100.5, "rate": 100.5}, "where the rate rose though the lag was not known"),
        ({"breaker": "open"}, "where the effective rate was above the decided one"),
        ({"rate": 1001.0}, "where the effective rate was above the decided one"),
    ],
)
def test_a_rate_is_the_policys(changes: dict[str, object], words: str) -> None:
    assert any(words in one for one in said(Seen(control(**changes))))


def test_the_policy_is_a_line_between_two_lags() -> None:
    assert [RULES.rate(lag) for lag in (0, 100, 550, 1000, 9999)] == [1000.0, 1000.0, 550.0, 100.0, 100.0]
    assert said(Seen(control(lag=550, base_rate=550.0, rate=550.0))) == []
    assert said(Seen(control(lag=550, base_rate=550.0, rate=100.0, breaker="open"))) == []


def test_the_published_lag_is_that_of_log_and_database() -> None:
    assert said(Seen(control(lag=0), lags(lag=50))) == ["where the published lag was too low"]
    assert said(Seen(control(lag=90), lags(lag=50))) == ["where the published lag was too high"]
    # Where PostgreSQL was away, the log alone says how far it is stored; and a log that was restored says nothing.
    away = Window("postgres.kill", 990.0, 1050.0, frozenset({Part.DATABASE}))
    assert said(Seen(control(lag=90), lags(lag=50)), [], away) == []
    back = Window("log.back", 990.0, 1050.0, frozenset({Part.LOG}))
    assert said(Seen(control(lag=0), lags(lag=50)), [], back) == []


def test_a_control_server_that_came_back_publishes_an_earlier_lag_once_more() -> None:
    earlier = [replace(one, version=3, lag=90) if one.version == 20 else one for one in control()]
    back = Window("control-redis.back", 1018.0, 1019.0, frozenset({Part.CONTROL}))
    assert said(Seen(earlier, lags(lag=50)), [], back) == []
    # But only after a fault of that server, and only once.
    assert said(Seen(earlier, lags(lag=50))) == ["where the published lag was too high"]
    again = [replace(one, version=one.version - 10, lag=90) if one.version > 20 else one for one in control()]
    assert said(Seen(again, lags(lag=50)), [], back) == ["where the published lag was too high"]


def test_a_breaker_that_changes_the_version_publishes_no_lag() -> None:
    # Given a lag that grows after the last publication, and a breaker that opens 4 s later
    grown = [one if one.at < 1011 else later for one, later in zip(lags(), lags(lag=5000), strict=True)]
    samples = [
        one if one.at < 1011 else replace(one, version=11 if one.at < 1015 else 12, published_at=10.0, breaker=state)
        for one in control()
        if (state := "closed" if one.at < 1015 else "open") and one.at < 1018
    ]
    closed = [replace(one, rate=100.0) if one.breaker == "open" else one for one in samples]
    assert said(Seen(closed, grown)) == []
    # But a controller that publishes then must say the lag of then
    spoken = [replace(one, published_at=15.0) if one.breaker == "open" else one for one in closed]
    assert said(Seen(spoken, grown)) == ["where the published lag was too low"]


def test_a_log_that_begins_behind_what_is_stored_was_trimmed_too_far() -> None:
    seen = Seen(lags=[LagSample(1000.0, {0: PartitionSample(7, 9, 6, is_fresh=True)})])
    assert said(seen) == ["where the log began behind what was stored"]
    stale = Seen(lags=[LagSample(1000.0, {0: PartitionSample(7, 9, 6, is_fresh=False)})])
    assert said(stale) == []


@pytest.mark.parametrize(
    ("store", "told", "words"),
    [
        ({"paused": frozenset({None})}, {"consumption": "paused"}, "healthy though it was not"),
        ({"paused": frozenset({2})}, {"consumption": "running"}, "healthy though it was not"),
        ({"paused": frozenset({None})}, {"status": "degraded", "reasons": 1}, "a wrong pause state"),
        ({}, {"consumption": "paused"}, "a wrong pause state"),
        ({"breaker": "open", "rate": 100.0}, {"breaker": "open", "rate": 100.0}, "healthy though it was not"),
        ({"breaker": "open", "rate": 100.0}, {"status": "critical", "reasons": 1}, "state of the breaker"),
        ({"lag": 2000, "base_rate": 100.0, "rate": 100.0}, {"lag": 2000, "rate": 100.0}, "healthy though it was not"),
        ({}, {"lag": 51}, "a lag that was not published"),
        ({}, {"rate": 900.0}, "a rate that was not published"),
        ({}, {"reasons": 1}, "gave no reason"),
        ({}, {"status": None}, "did not answer"),
    ],
)
def test_health_says_what_is_so(store: dict[str, object], told: dict[str, object], words: str) -> None:
    found = said(Seen(control(**store), [], health(**told)))
    assert len(found) == 1
    assert words in found[0]
    # One such answer may come of a process that was not run for a moment.
    once = health()
    once[20] = health(**told)[20]
    if not store:
        assert said(Seen(control(), [], once)) == []


def test_health_may_tell_what_the_watcher_has_missed() -> None:
    samples = [replace(one, version=2 * one.version) for one in control()]
    assert said(Seen(samples, [], health(lag=51))) == []


def test_health_may_tell_a_try_of_the_prober_that_the_watcher_has_missed() -> None:
    told = health(status="critical", reasons=1, breaker="half-open", rate=100.0)
    assert said(Seen(control(breaker="open", rate=100.0), [], told)) == []
    assert said(Seen(control(rate=1000.0), [], told)) == ["where health reported a wrong state of the breaker"]


def test_health_may_tell_of_a_breaker_that_was_tried_right_after_it_opened() -> None:
    told = health(status="critical", reasons=1, breaker="open", rate=100.0)
    assert said(Seen(control(breaker="half-open", rate=100.0), [], told)) == []


def test_health_may_tell_what_the_watcher_sees_only_in_its_next_sample() -> None:
    # Given a watcher that was not run for two seconds, in which the breaker opened
    samples = [one for one in control() if one.at <= 1010.0]
    samples += [one for one in control(breaker="open", rate=100.0) if one.at >= 1012.0]
    told = [one for one in health() if one.at < 1011.0]
    told += [one for one in health(status="critical", reasons=1, breaker="open", rate=100.0) if one.at >= 1011.0]
    assert said(Seen(samples, [], told)) == []
    # But not what no sample shows
    closed = [replace(one, breaker="closed", rate=1000.0) for one in samples]
    assert "where health reported a wrong state of the breaker" in said(Seen(closed, [], told))


def test_health_may_tell_what_began_and_ended_between_two_samples() -> None:
    # Given a watcher that was not run for two seconds, in which the breaker opened and closed
    samples = [one for one in control() if not 1010.0 < one.at < 1012.0]
    told = [
        replace(one, status="critical", reasons=1, breaker="open", rate=100.0) if 1010.5 <= one.at < 1012.0 else one
        for one in health()
    ]
    assert said(Seen(samples, [], told)) == []
    # But not while the watcher looked on
    assert said(Seen(control(), [], told)) == ["where health reported a wrong state of the breaker"]


def test_health_tells_the_logs_own_word_until_a_silent_controller_speaks_again() -> None:
    # Given a controller that is silent from 1010 to 1020, a breaker that opens meanwhile, and another lag in health
    samples = [
        replace(one, version=min(one.version, 10 + int(one.at > 1015)), published_at=min(one.published_at or 0.0, 10.0))
        if one.at < 1020
        else replace(one, version=one.version - 9)
        for one in control()
    ]
    told = [one if one.at < 1014 or one.at >= 1020 else replace(one, lag=77) for one in health()]
    assert said(Seen(samples, [], told)) == []
    # And for the moment that it needs to hear it
    later = [one if one.at < 1014 or one.at > 1021.5 else replace(one, lag=77) for one in health()]
    assert said(Seen(samples, [], later)) == []
    # But not for longer, and not beside one that speaks
    late = [one if one.at < 1014 or one.at > 1025 else replace(one, lag=77) for one in health()]
    assert said(Seen(samples, [], late)) == ["where health reported a lag that was not published"]
    assert said(Seen(control(), [], told)) == ["where health reported a lag that was not published"]


def test_a_lag_is_judged_by_the_time_since_the_watcher_last_saw_a_publication() -> None:
    # Given a control server that was away from 1010 to 1014, and a lag that grew meanwhile from 50 to 5000
    grown = [one if one.at < 1011 else later for one, later in zip(lags(), lags(lag=5000), strict=True)]
    published = [one if one.at < 1014 else replace(one, lag=5000, base_rate=100.0, rate=100.0) for one in control()]
    away = [one for one in published if not 1010 <= one.at < 1014]
    newest = next(index for index, one in enumerate(away) if one.at >= 1014)
    away[newest] = replace(away[newest], lag=50, base_rate=1000.0, rate=1000.0)
    # Then what was published just before it went away is not too low
    assert said(Seen(away, grown)) == []
    # But it is, published while the watcher looked on
    seen_it = [one if one.at != away[newest].at else away[newest] for one in published]
    assert "where the published lag was too low" in said(Seen(seen_it, grown))


def test_health_is_not_healthy_while_the_log_is_dead() -> None:
    parts = frozenset({Part.LOG})
    dead = Window("log.kill", 1010.0, 1030.0, parts, parts, made_at=1010.0, repair_at=1030.0)
    assert said(Seen(control(), lags(), health()), [], dead) == ["where health said healthy though it was not"]
    frozen = replace(dead, dead=frozenset())
    assert said(Seen(control(), lags(), health()), [], frozen) == []


def test_nothing_is_stored_while_paused() -> None:
    # Given a pause from 1010 to 1020
    samples = [replace(one, paused=frozenset({None} if 1010 <= one.at < 1020 else set())) for one in control()]
    words = ["where a row was stored though consumption was paused"]
    # Then a batch that was under way may be stored, and nothing after it before the end
    assert said(Seen(samples), [row(1009.0), row(1011.0), row(1021.0)]) == []
    assert said(Seen(samples), [row(1015.0)]) == words
    # But not where a worker may have been frozen in the middle of a batch
    worker = Window("child.freeze", 1008.0, 1009.0, frozenset({Part.WORKERS}))
    assert said(Seen(samples), [row(1015.0)], worker) == []


def test_a_pause_of_one_partition_is_no_pause_of_others() -> None:
    samples = control(paused=frozenset({1}))
    assert said(Seen(samples), [row(1015.0, partition=0)]) == []
    assert said(Seen(samples), [row(1015.0, partition=1)]) != []


def test_a_partition_with_lag_gets_on() -> None:
    words = ["where a partition with lag had stood still outside a fault"]
    assert said(Seen(control(), lags(moves=False))) == words
    assert said(Seen(control(), lags(moves=False, seconds=9))) == []
    # Not while it is paused, or a fault lasts; and a worker that had to be started gets more time
    assert said(Seen(control(paused=frozenset({0})), lags(moves=False))) == []
    fault = Window("postgres.freeze", 1000.0, 1029.0, frozenset({Part.DATABASE}))
    assert said(Seen(control(), lags(moves=False)), [], fault) == words
    assert said(Seen(control(), lags(moves=False)), [], replace(fault, end=1031.0)) == []
    killed = replace(fault, touches=frozenset({Part.WORKERS}))
    assert said(Seen(control(), lags(moves=False)), [], killed) == []
    # A fault that touches nothing excuses nothing
    assert said(Seen(control(), lags(moves=False)), [], replace(fault, end=1040.0, touches=frozenset())) == words


def test_the_controller_publishes_again_and_again() -> None:
    samples = [replace(one, version=min(one.version, 20)) for one in control()]
    assert said(Seen(samples)) == ["where the controller had not published outside a fault"]
    assert said(Seen(samples[: 29 * 5])) == []
    fault = Window("control-redis.freeze", 1020.0, 1039.0, frozenset({Part.CONTROL}))
    assert said(Seen(samples), [], fault) == []
