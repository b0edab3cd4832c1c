"""Runs the parts of hostile.sh one after another, each with its own verdict."""

import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from checks.hostile.answers import (
    JSON,
    NDJSON,
    wrong_answers_of_protocols,
    wrong_answers_to_cases,
    wrong_answers_to_corpus,
)
from checks.hostile.arguments import Plan
from checks.hostile.contract import Report
from checks.hostile.fuzzing import CORPUS, fuzz
from checks.hostile.part import Part
from checks.hostile.siege import P99_SECONDS_SURE, ROOT, Siege, environ, flood_problems, flooding, siege
from checks.hostile.system import Attacked, attacked
from checks.hostile.watch import Watch
from checks.loadgen.open_load import Responses

IDLE: Final = 500
TRICKLING: Final = 200
HARD: Final = 4
LOAD_RATE: Final = 100.0  # requests/s of the normal load: it shares the machine with the attack
CALM_SECONDS: Final = 6.0  # of load alone, before each attack
ROUND_SECONDS: Final = 30.0  # of one attack: three times the limit of a trickling connection
LONG_SECONDS: Final = 300.0  # of attacks: long enough that a neighbour's short work does not decide the p99
SHORT_P99_SECONDS_SURE: Final = 0.5  # in a shorter run; it is 2.5 s if slow bodies are read at once
CPU_SHARE_MAX: Final = 0.6  # of a core: a quarter for slow bodies, some for slow bytes, and the load
OTHERS_P99_SECONDS_SURE: Final = 0.25  # a body of 16 MiB has steps of some ten milliseconds
ATTACKS: Final[dict[str, dict[str, int]]] = {
    "slow bodies of other protocols": {"others": HARD},  # first, so that memory they need once does not count as growth
    "connections": {"idle": IDLE, "trickling": TRICKLING},
    "slow bodies": {"hard": HARD},
    "both": {"idle": IDLE, "trickling": TRICKLING, "hard": HARD},
}
_SHARE_CASES: Final = 500  # of schemathesis in one process, which takes a minute or two
_WHOLE_CASES: Final = 100  # for each operation of the whole document, besides examples and boundaries
_MODES: Final = ("negative", "positive", "negative", "all")  # in turn
_CASE_SECONDS_MAX: Final = 0.5  # on one process; a tenth of it is usual
_START_SECONDS: Final = 120.0


@dataclass
class Result:
    """The result of a run."""

    plan: Plan
    parts: list[Part] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether everything that was done held."""
        return not any(part.problems for part in self.parts)


Tell = Callable[[str], None]


def run(plan: Plan, folder: Path, tell: Tell) -> Result:
    """Run all parts of the plan; they write their files to `folder`. Raises ServerError, AssertionError if the system
    does not start.
    """
    result = Result(plan)
    began = time.monotonic()

    def do(name: str, work: Callable[[], Part]) -> None:
        if name not in plan.parts and name != "system":
            return
        at = time.monotonic()
        tell(f"{name} …")
        try:
            part = work()
        except Exception as error:  # any error: the other parts can still be judged
            part = Part(name, problems=[f"it broke off: {type(error).__name__}: {error}"])
        part.seconds = time.monotonic() - at
        result.parts.append(part)
        for line in (*part.lines, *([part.skipped] if part.skipped else ()), *part.problems):
            tell(f"  {line}")
        tell(f"{name}: {part.verdict}")

    do(
        "fuzz",
        lambda: fuzz(folder / "fuzz", seconds=plan.fuzz_seconds, seed=plan.seed, processes=plan.processes),
    )
    if set(plan.parts) - {"fuzz"}:
        tell("starting servers and Sluice …")
        with attacked(folder) as target:
            do("cases", partial(_cases, target))
            do("contract", partial(_contract, target, plan, tell))
            do("floods", partial(_floods, target, plan, tell))
            do("system", partial(_system, target))
    result.seconds = time.monotonic() - began
    return result


def _cases(target: Attacked) -> Part:
    """Send the JSON cases and the fuzzer's corpus by HTTP."""
    part = Part("cases")
    for content_type in (JSON, NDJSON):
        count, wrong = wrong_answers_to_cases(target.port, content_type)
        part.problems += wrong
        part.figures[content_type] = count
    inputs = [(path.name, data) for path in sorted(CORPUS.iterdir()) if (data := path.read_bytes())]
    part.figures["other protocols"], wrong = wrong_answers_of_protocols(target.port)
    part.problems += wrong
    seen, wrong = wrong_answers_to_corpus(target.port, inputs)
    part.problems += wrong
    part.figures["corpus"] = len(inputs)
    part.figures["answers to the corpus"] = dict(sorted(seen.items()))
    part.lines.append(
        f"{part.figures[JSON]} bodies as JSON, {part.figures[NDJSON]} as NDJSON, "
        f"{part.figures['other protocols']} for other protocols, {len(inputs)} inputs of the corpus"
    )
    return part


# --- The contract ---------------------------------------------------------------------------------------------------


def _contract(target: Attacked, plan: Plan, tell: Tell) -> Part:
    """Send requests made from the OpenAPI document, from parallel processes, until there are enough of them."""
    part = Part("contract")
    total = Report()
    lock = threading.Lock()
    seeds = iter(range(plan.seed, plan.seed + 100_000))
    deadline = time.monotonic() + _START_SECONDS + plan.cases * _CASE_SECONDS_MAX / plan.processes

    def work(number: int) -> None:
        is_whole = number == 0  # its first share is of the whole document
        while True:
            with lock:
                left = plan.cases - total.cases
                seed = next(seeds)
            if left <= 0 or time.monotonic() > deadline:
                return
            cases = min(_SHARE_CASES, 50 + left // plan.processes)
            if is_whole:
                report = _share(target.url, seed, _WHOLE_CASES)
            else:
                report = _share(target.url, seed, cases, "--short", "--mode", _MODES[seed % len(_MODES)])
            is_whole = False
            with lock:
                total.add(report)
                tell(f"  {total.cases:,} requests, {sum(total.failures.values())} wrong answers")
                for title in report.failures:
                    tell(f"  seed {seed}: {title}")

    with Watch(target.programs) as watch, ThreadPoolExecutor(plan.processes) as pool:
        list(pool.map(work, range(plan.processes)))
    part.figures |= {
        "cases": total.cases,
        "statuses": {str(status): count for status, count in sorted(total.statuses.items())},
        "failures": dict(total.failures),
        "examples": total.examples,
    }
    part.lines.append(f"{total.cases:,} requests: {_counts(total.statuses)}")
    part.problems += [
        f"{count} times {title}\n{total.examples.get(title, '')}" for title, count in total.failures.items()
    ]
    if total.cases < plan.cases:
        part.problems.append(f"only {total.cases:,} of {plan.cases:,} requests could be made in time")
    if total.statuses[0]:
        part.problems.append(f"{total.statuses[0]} requests got no answer")
    part.figures["memory"] = watch.figures()
    part.problems += watch.problems()
    return part


def _share(url: str, seed: int, cases: int, *options: str) -> Report:
    """Send some requests from a separate process. Raises RuntimeError if it fails."""
    command = [
        *(sys.executable, "-m", "checks.hostile.contract", url, "--seed", str(seed), "--cases", str(cases)),
        *options,
    ]
    run = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=900, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"schemathesis ended with {run.returncode}: {run.stderr[-2000:]}")
    return Report.of(run.stdout)


def _counts(statuses: Counter[int]) -> str:
    return ", ".join(f"{count:,} times {status or 'no answer'}" for status, count in sorted(statuses.items()))


# --- Floods ---------------------------------------------------------------------------------------------------------


def _floods(target: Attacked, plan: Plan, tell: Tell) -> Part:
    """Run a normal load during each attack in turn, and watch the memory from begin to end."""
    part = Part("floods")
    sieges: dict[str, Siege] = {}
    rounds: dict[str, int] = Counter()
    round_seconds = min(ROUND_SECONDS, plan.attack_seconds / len(ATTACKS))
    allowed = target.system.settings.request_seconds_max
    attacked_seconds = 0.0
    with Watch(target.programs) as watch:
        while attacked_seconds < plan.attack_seconds:
            for name, counts in ATTACKS.items():
                attack = partial(_measured, target, round_seconds, counts)
                seen = siege(target.port, attack, rate=LOAD_RATE, before_seconds=CALM_SECONDS, seconds=round_seconds)
                attacked_seconds += round_seconds
                rounds[name] += 1
                part.problems += [f"{name}: {problem}" for problem in flood_problems(seen.attack, allowed)]
                if name in sieges:
                    sieges[name].add(seen)
                else:
                    sieges[name] = seen
            tell(f"  {attacked_seconds:.0f} of {plan.attack_seconds:.0f} s")
    calm = Responses()  # the load alone, before any of the attacks: the longer it is, the steadier its p99
    for one in sieges.values():
        calm.seconds += one.before.seconds
        calm.status += one.before.status
    is_long = attacked_seconds >= LONG_SECONDS
    sure = P99_SECONDS_SURE if is_long else SHORT_P99_SECONDS_SURE
    for name, all_of_it in sieges.items():
        all_of_it.before = calm
        is_of_others = bool(ATTACKS[name].get("others"))
        p99_sure = max(sure, OTHERS_P99_SECONDS_SURE) if is_of_others else sure
        part.problems += [f"{name}: {problem}" for problem in all_of_it.problems(p99_seconds_sure=p99_sure)]
        part.lines += [f"{name}, {rounds[name]} times {round_seconds:.0f} s: {line}" for line in all_of_it.lines()]
        share = all_of_it.attack["cpu_seconds"] / all_of_it.attack["seconds"]
        part.lines.append(f"{name}: ingest took {share:.0%} of a core, the load included")
        # Large bodies of other protocols are usual. They get every second step, and so all idle time of a core.
        if share > CPU_SHARE_MAX and not is_of_others:
            part.problems.append(f"{name}: ingest took {share:.0%} of a core; {CPU_SHARE_MAX:.0%} are allowed")
        part.figures[name] = {"rounds": rounds[name], **all_of_it.figures()}
    part.figures["attack_seconds"] = attacked_seconds
    part.figures["memory"] = watch.figures()
    part.lines += watch.lines()
    part.problems += watch.problems()
    return part


@contextlib.contextmanager
def _measured(target: Attacked, seconds: float, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """A flood, with ingest's CPU time during it: the only figure that other programs do not change."""
    process = psutil.Process(target.programs["ingest"])
    with flooding(target.port, seconds=seconds, **counts) as told:
        began, before = time.monotonic(), process.cpu_times()
        yield told
    after = process.cpu_times()
    told["cpu_seconds"] = round(after.user + after.system - before.user - before.system, 2)
    told["seconds"] = round(time.monotonic() - began, 2)


# --- In the end -----------------------------------------------------------------------------------------------------


def _system(target: Attacked) -> Part:
    """Check that all processes run, and that all accepted events are stored."""
    part = Part("system")
    part.problems += target.problems()
    statuses = target.statuses()
    part.figures |= {
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "events stored": target.rows("log_events"),
        "dead letters": target.rows("dead_letters"),
        "processes": len(target.programs) + len(target.servers),
    }
    part.lines.append(
        f"{part.figures['processes']} processes run; all answers: {_counts(Counter(statuses))}; "
        f"{part.figures['events stored']:,} events are stored, {part.figures['dead letters']} dead letters"
    )
    return part
