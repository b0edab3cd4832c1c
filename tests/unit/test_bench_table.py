"""What the benchmarks make of their measurements: medians, ratios by round, verdicts, the table, the command line."""

import argparse
import json
import math

import pytest

from checks.bench import overload
from checks.bench.arguments import ARM_WORDS, MARKS, arguments_of, arms_of, marks_of
from checks.bench.step import NEVER, between, could_of, quantile, rates_of, step_of
from checks.bench.table import Line, at_least, at_most, document, joined, made_of, number, ratios, table


def test_a_ratio_is_taken_in_each_round() -> None:
    # Given a machine that is half as fast in the second round
    assert ratios([10, 5, 12], [20, 10, 20]) == [0.5, 0.5, 0.6]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


@pytest.mark.parametrize(
    ("values", "goal", "value", "verdict"),
    [
        ([0.9, 0.7, 0.2], at_least(0.7), 0.7, "reached"),
        ([0.9, 0.69, 0.2], at_least(0.7), 0.69, "not reached"),
        ([150], at_most(150), 150, "reached"),
        ([151], at_most(150), 151, "not reached"),
        ([math.inf], at_most(10), math.inf, "not reached"),
        ([1, 2], None, 1.5, "reported"),
        ([], at_least(1), None, "not measured"),
    ],
)
def test_the_median_is_held_against_the_goal(
    values: list[float], goal: object, value: float | None, verdict: str
) -> None:
    line = Line("M1", "what", values, goal)  # type: ignore[arg-type]
    assert (line.value, line.verdict) == (value, verdict)


@pytest.mark.parametrize(
    ("never", "verdict"), [(0, "reached"), (1, "reached"), (2, "not reached"), (10, "not reached")]
)
def test_a_goal_may_be_for_a_share_of_the_runs(never: int, verdict: str) -> None:
    # Given ten runs, of which some never settled: the median alone would hide four of them
    settled = [4.0] * (10 - never) + [math.inf] * never
    goal = at_most(10, share=0.9)
    assert Line("M6", "settles", settled, goal).verdict == verdict
    assert str(goal) == "<= 10 in 90 % of the runs"


def test_the_runs_of_one_figure_become_one_line() -> None:
    goal = at_most(10, share=0.9)
    lines = [
        Line("M6", "settles", [4.0], goal, unit="s", figures={"sink": 1500.0, "admitted": [1.0, 2.0]}),
        Line("M6", "swings", [0], at_most(0)),
        Line("M6", "settles", [math.inf], goal, unit="s", figures={"sink": 1400.0, "admitted": [3.0]}),
        Line("M6", "settles", problem="it fell over"),
        Line("M10", "settles", problem="it fell over"),
    ]
    settles, swings, other = joined(lines)
    # Then each has the values of all runs, and a run without a figure hides none
    assert (settles.values, settles.verdict, settles.unit, settles.goal) == ([4.0, math.inf], "not reached", "s", goal)
    assert settles.figures == {"sink": [1500.0, 1400.0], "admitted": [[1.0, 2.0], [3.0]]}
    assert swings == lines[1]
    assert (other.mark, other.problem) == ("M10", "it fell over")


def test_the_table_has_goal_spread_and_verdict_of_each_line() -> None:
    text = table(
        [
            Line("M1", "a ratio", [0.5, 0.75, 0.9], at_least(0.7)),
            Line("M6", "a time", [math.inf], at_most(10), unit="s"),
            Line("M7", "no luck", problem="it fell over"),
        ]
    )
    first, second, third = text.splitlines()[1:]
    assert first.split() == ["M1", "a", "ratio", "0.750", "0.500", "to", "0.900", ">=", "0.7", "reached"]
    assert second.split() == ["M6", "a", "time", "never", "s", "<=", "10", "not", "reached"]
    assert third.split()[-5:] == ["measured:", "it", "fell", "over"][-5:] or third.endswith(
        "not measured: it fell over"
    )
    assert first.index(">=") == second.index("<="), "columns stand below each other"


def test_what_ratios_are_made_of_is_told_once() -> None:
    # Given two ratios over one measurement, and one with figures of each round
    single = {"cpu_seconds": 2.5, "log_server_cpu_seconds": 1.25}
    lines = [
        Line("M1", "ours / bare", [0.9], figures={"ours": single, "bare": {"cpu_seconds": 2.0}}),
        Line("M1", "ours / other", [3.0], figures={"ours": single, "other": {"cpu_seconds": 7.0}}),
        Line("M7", "drain / COPY", [0.8, 0.9], figures={"drain": [90.0, 110.0, 100.0], "why": "text", "late": True}),
        Line("M7", "… / COPY alone", [0.7, 0.9], figures={"drain": [90.0, 110.0, 100.0]}),
        Line("M3", "no figures", [1.0]),
    ]
    # Then each is told once, with medians, and what is no number is left out
    assert made_of(lines).splitlines() == [
        "M1  ours          cpu seconds 2.50, log server cpu seconds 1.25",
        "M1  bare          cpu seconds 2.00",
        "M1  other         cpu seconds 7.00",
        "M7  drain / COPY  drain 100",
    ]


def test_the_json_has_every_round() -> None:
    lines = [Line("M3", "a", [1.0, 3.0], at_most(2), unit="ns", figures={"n": 5})]
    found = json.loads(document(lines, log="redis"))
    assert found["log"] == "redis"
    assert found["lines"] == [
        {
            "mark": "M3", "what": "a", "value": 2.0, "unit": "ns", "rounds": [1.0, 3.0], "goal": "<= 2",
            "verdict": "reached", "problem": None, "figures": {"n": 5},
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(0.0567, "0.057"), (1.234, "1.23"), (99.999, "100.00"), (12345.6, "12,346"), (0, "0.00")]
)
def test_numbers_have_three_digits_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_rates_are_counted_by_whole_seconds() -> None:
    times, counts = [9.9, 10.0, 10.99, 11.0, 12.5, 13.0], [1, 2, 3, 4, 5, 6]
    assert rates_of(times, counts, begin=10, end=13) == [5, 4, 5]
    assert rates_of([], [], begin=0, end=0) == []


def test_events_are_counted_from_the_begin_to_before_the_end() -> None:
    assert between([9.9, 10.0, 12.9, 13.0], [1, 2, 3, 4], begin=10, end=13) == 5


def test_what_a_changing_sink_could_store() -> None:
    # Given a sink of 1,500, from second 25.5 on of 600, and from second 60 on of 3,000
    rates = [(0.0, 1500.0), (25.5, 600.0), (60.0, 3000.0)]
    assert could_of(rates, begin=0, end=100) == pytest.approx(25.5 * 1500 + 34.5 * 600 + 40 * 3000)
    # What is not judged does not count, also where it ends within a later part
    assert could_of(rates, begin=10, end=61) == pytest.approx(15.5 * 1500 + 34.5 * 600 + 3000)
    assert could_of(rates, begin=30, end=40) == pytest.approx(6000)


def test_a_step_settles_when_it_stays_within_the_band() -> None:
    # Given a rate that is in the band, leaves it once, and comes back for good
    admitted = [2000, 1050, 1500, 1000, 1000, 950, 1050, 1000, 1000]
    step = step_of(admitted, [1000] * 9, capacity=1000, lag_before=0)
    assert (step.settle_seconds, step.swings) == (3, 1)
    # And a lag that rose to 1,550 and stayed there
    assert step.overshoot == pytest.approx(1550 / 1550)


def test_single_seconds_of_a_constant_rate_may_leave_the_band() -> None:
    # Given a lease more or less in some seconds, at a rate that stays the same
    admitted = [1000, 1150, 1000, 850, 1000, 1000, 880, 1000]
    assert step_of(admitted, [1000] * 8, capacity=1000, lag_before=0).settle_seconds == 0
    # But a rate that stays away from the capacity has not settled before it comes back
    assert step_of([*admitted, 850, 850, 850, 1000, 1000], [1000] * 13, capacity=1000, lag_before=0).settle_seconds == 9


def test_the_edge_of_the_band_is_inside() -> None:
    assert step_of([1100, 900], [1000] * 2, capacity=1000, lag_before=0).settle_seconds == 0


def test_a_step_of_which_nothing_was_seen_never_settles() -> None:
    assert step_of([], [], capacity=1000, lag_before=0).settle_seconds == NEVER


def test_a_step_that_ends_outside_never_settles() -> None:
    step = step_of([1000, 1000, 670], [1000] * 3, capacity=1000, lag_before=0)
    assert (step.settle_seconds, step.swings) == (NEVER, 1)


def test_overshoot_is_the_highest_lag_over_the_final_one() -> None:
    admitted, stored = [5000, 3000, 0, 0, 1000, 1000], [1000, 1000, 2000, 2000, 1000, 1000]
    step = step_of(admitted, stored, capacity=1000, lag_before=500)
    assert step.overshoot == pytest.approx(6500 / 2500)
    # Less than a second's worth of lag is noise
    assert step_of([100], [100], capacity=1000, lag_before=10).overshoot == pytest.approx(0.01)


@pytest.mark.parametrize(("share", "value"), [(0.99, 99), (0.5, 50), (1.0, 100), (0.001, 1)])
def test_a_quantile_is_a_value_that_was_there(share: float, value: int) -> None:
    assert quantile(list(range(100, 0, -1)), share) == value


def test_marks_are_read_in_any_case_and_order() -> None:
    assert marks_of("m7, M1, M10") == ["M1", "M7", "M10"]
    assert arguments_of([]).only == [mark for mark in MARKS if mark not in {"M14", "M15"}]


def test_every_way_to_limit_the_rate_has_a_word_on_the_command_line() -> None:
    assert tuple(arm.word for arm in overload.ARMS) == ARM_WORDS
    assert arguments_of(["--arms", "drain-time, bands"]).arms == ("bands", "drain-time")
    assert overload.DEFAULT_ARMS == ("off", "static", "bands", "drain-time")
    for text in ("", "drain_time", "bands,foo"):
        with pytest.raises(argparse.ArgumentTypeError):
            arms_of(text)


def test_without_a_limit_it_is_loaded_until_what_is_stored_is_late() -> None:
    # At twice the sink's rate, what is stored after 20 s was received 10 s before
    off = overload.ARMS[0]
    assert [off.warm_for(factor) for factor in overload.FACTORS] == pytest.approx([22, 14.5, 10 * 10 / 9 + 2])
    assert {arm.warm_for(2) for arm in overload.ARMS[1:]} == {10, 45}


@pytest.mark.parametrize("text", ["M99", "M1,foo", "", ","])
def test_other_marks_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        marks_of(text)


@pytest.mark.parametrize("words", [["--quick", "--full"], ["--rounds", "0"], ["--log", "rabbit"], ["--only", "M99"]])
def test_a_command_line_that_makes_no_sense(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        arguments_of(words)
