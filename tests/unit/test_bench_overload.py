"""What ./bench.sh makes of loads on a whole system: on a system that is played by this file, second by second."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from checks.bench.held import BODY_EVENTS, Batch, Change, Run
from checks.bench.machine import Options
from checks.bench.overload import ARMS, OFF_RATE, SystemMeasurements
from checks.bench.table import Line, joined
from checks.loadgen.open_load import Responses

BEGIN = 1_000_000.0
ALL = {"M5", "M6", "M9", "M10"}
Rates = Callable[[float], float]


@dataclass
class PlayedSystem:
    """Admits and stores at rates that a test gives, by the seconds since a load began."""

    admits: Rates = field(default=lambda _: 1500.0)
    stores: Rates = field(default=lambda _: 1500.0)
    age_seconds: Rates = field(default=lambda _: 2.0)
    limited: float | None = None
    done: list[str] = field(default_factory=list)

    def limit(self, rate: float | None) -> None:
        self.limited = rate

    def raise_maximum(self, rate_max: float | None) -> None:
        if rate_max is not None:
            self.done.append(f"maximum {rate_max:.0f}")

    def forget(self) -> None:
        self.done.append("forget")

    def hold(self, rate: float | None) -> None:
        self.done.append(f"hold {rate:.0f}")

    def freeze(self) -> None:
        self.done.append("freeze")

    def thaw(self) -> None:
        self.done.append("thaw")

    def run(self, phases: Sequence[tuple[float, float]], changes: Sequence[Change] = (), sink: float = 1500) -> Run:
        is_maximum = self.limited == OFF_RATE
        seconds = int(sum(length for length, _ in phases))
        self.done.append(f"{'maximum of' if is_maximum else 'run'} {sink:.0f}")
        for _, make in changes:
            make()
        responses, stored = Responses(), []
        for second in range(seconds):
            bodies = round((sink if is_maximum else self.admits(second)) / BODY_EVENTS)
            responses.due += [BEGIN + second + number / bodies for number in range(bodies)]
            responses.status += [202] * bodies
            responses.seconds += [0.01] * bodies
            events = int(sink if is_maximum else self.stores(second))
            age = self.age_seconds(second)
            stored.append(Batch(BEGIN + second + 0.5, events, events if age <= 10 else 0, age))
        responses.due.append(BEGIN + seconds)
        responses.status.append(429)
        responses.seconds.append(0.01)
        return Run(responses, stored, [BEGIN + after for after, _ in changes])


def measured(system: PlayedSystem, marks: set[str], arm: str = "drain-time", step_runs: int = 2) -> dict[str, Line]:
    arms = [one for one in ARMS if one.word == arm]
    played = SystemMeasurements(system, Options(step_runs=step_runs), 0)  # type: ignore[arg-type]
    return {line.what: line for line in joined(list(played.measure(arms, marks)))}


def test_a_rate_at_the_sinks_capacity_reaches_every_goal() -> None:
    def sink(second: float) -> float:
        return 1500.0

    found = measured(PlayedSystem(admits=sink, stores=sink), {"M5", "M6", "M10"})
    goals = {what: line.verdict for what, line in found.items() if line.goal is not None}
    assert set(goals.values()) == {"reached"}
    assert [what for what in goals if what.startswith("goodput")] == [
        f"goodput at {factor} x what the sink takes: drain_time, {when}"
        for factor in (2, 5, 10)
        for when in ("settled", "cold")
    ]
    assert len(found["step to 2 x: until admitted stays within 10 % of the sink: drain_time"].values) == 2
    assert (
        "PostgreSQL frozen for 30 s: from the repair until admitted stays within 10 % of the sink: drain_time" in goals
    )


def test_each_run_of_drain_time_begins_as_on_a_new_system() -> None:
    system = PlayedSystem()
    measured(system, ALL)
    runs = [index for index, done in enumerate(system.done) if done == "run 1500"]
    assert len(runs) == 3 + 2 + 1 + 1
    assert {system.done[index - 1] for index in runs} == {"forget"}
    # and the maximum of each sink is measured without a limit, before all else
    assert system.done[:3] == ["maximum of 600", "maximum of 1500", "maximum of 3000"]
    assert system.limited is None


def test_the_bands_keep_their_state_and_their_goals() -> None:
    system = PlayedSystem(admits=lambda _: 1000.0, stores=lambda _: 1000.0)
    found = measured(system, {"M5", "M6"}, arm="bands")
    assert "forget" not in system.done
    line = found["goodput at 2 x what the sink takes: default bands"]
    assert line.value == pytest.approx(2 / 3)
    assert (str(line.goal), line.verdict) == (">= 0.97", "not reached")
    settles = found["step to 2 x: until admitted stays within 10 % of the sink: default bands"]
    assert (settles.values, settles.verdict) == ([float("inf")], "not reached")


def test_without_a_limit_nothing_is_judged_and_no_step_is_made() -> None:
    system = PlayedSystem(age_seconds=lambda second: second)
    system.limited = OFF_RATE
    found = measured(system, ALL, arm="off")
    assert all(line.goal is None for line in found.values())
    assert {line.mark for line in found.values()} == {"M5"}


def test_cold_and_settled_are_two_windows_of_one_run() -> None:
    # Given a rate that finds the sink in second 12, and overshoots it from second 30 on
    def stores(second: float) -> float:
        return 1000 if second < 12 else 1500 if second < 30 else 1440

    found = measured(PlayedSystem(stores=stores), {"M5"})
    assert found["goodput at 5 x what the sink takes: drain_time, cold"].value == pytest.approx(
        (2 * 1000 + 8 * 1500) / 15_000
    )
    assert found["goodput at 5 x what the sink takes: drain_time, settled"].value == pytest.approx(0.96)
    assert found["goodput at 5 x what the sink takes: drain_time, settled"].verdict == "not reached"


def of_changes(second: float) -> float:
    return 1500 if second < 25 else 600 if second < 60 else 3000


@pytest.mark.parametrize(
    ("stores", "age", "share", "verdicts"),
    [
        (of_changes, 12.0, 0.0, ["not reached", "reached"]),  # stored, and all of it later than 10 s
        (of_changes, 9.0, 1.0, ["reached", "reached"]),
        (of_changes, 12.1, 0.0, ["not reached", "not reached"]),
        # slow to see that it takes 3,000: 15 s at 1,500
        (lambda second: 1500 if 60 <= second < 75 else of_changes(second), 9.0, 1 - 22_500 / 163_500,
         ["not reached", "reached"]),
    ],
)  # fmt: skip
def test_a_changing_sink_is_judged_by_what_it_could_have_stored(
    stores: Rates, age: float, share: float, verdicts: list[str]
) -> None:
    system = PlayedSystem(admits=of_changes, stores=stores, age_seconds=lambda _: age)
    goodput, oldest = measured(system, {"M9"}).values()
    assert "hold 600" in system.done
    assert "hold 3000" in system.done
    assert goodput.value == pytest.approx(share, abs=0.002)
    assert oldest.value == age
    assert [goodput.verdict, oldest.verdict] == verdicts
    assert goodput.figures["settled_after_600_seconds"] == 0


@pytest.mark.parametrize(("after", "verdicts"), [(10, ["reached", "reached"]), (11, ["not reached", "not reached"])])
def test_a_repair_is_judged_from_ten_seconds_after_it(after: float, verdicts: list[str]) -> None:
    # Given a system that stays at its lowest rate for some seconds after the repair, which is in second 45
    def rate(second: float) -> float:
        return 1500 if second < 15 else 100 if second < 45 + after else 1450

    def stored(second: float) -> float:
        return 1500 if second < 15 else 0 if second < 45 + after else (1340 if after > 10 else 1360)

    system = PlayedSystem(admits=rate, stores=stored)
    settles, recovered = measured(system, {"M10"}).values()
    assert [one for one in system.done if one in ("freeze", "thaw")] == ["freeze", "thaw"]
    assert settles.value == after
    assert [settles.verdict, recovered.verdict] == verdicts


def test_a_run_that_fails_leaves_the_others() -> None:
    # Given a system that cannot be frozen
    class NotFrozen(PlayedSystem):
        def freeze(self) -> None:
            raise RuntimeError("no such process")

    found = measured(NotFrozen(), {"M6", "M10"})
    line = found["a run could not be measured: drain_time"]
    assert (line.mark, line.verdict) == ("M10", "not measured")
    assert "no such process" in line.problem
    assert "step to 2 x: until admitted stays within 10 % of the sink: drain_time" in found


def test_all_rounds_together_have_the_runs_that_were_asked_for() -> None:
    arms = [one for one in ARMS if one.word == "drain-time"]
    counts = []
    for number in range(3):
        system = PlayedSystem()
        options = Options(step_runs=10, overload_rounds=3)
        list(SystemMeasurements(system, options, number).measure(arms, {"M6"}))  # type: ignore[arg-type]
        counts.append(system.done.count("run 1500"))
    assert counts == [4, 3, 3]
