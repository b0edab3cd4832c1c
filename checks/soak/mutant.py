"""`./soak.sh --mutants`: the checker is tested on systems that break their promises.

Each mutant removes one defence and its fallbacks in a copy of the source. The judge must then report a short run under
the matching faults as broken, in the expected words. If no run shows a mutant, it names a unit test, which must fail on
the copy. If a mutant's text is no longer in the source, this is an error: the mutant would test nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks.testbed import processes

ROOT = processes.ROOT

_SOURCES = ("ingest", "pipeline", "tasks", "stack", "checks", "tests", "beat_schedule.py", "pyproject.toml")
_TESTS_FAILED = 1  # pytest's exit status: it ran them, and some failed
RECOVERY_SECONDS = 8  # a mutant may hang forever; the stored events show what it broke
_SEED = 11
_EVENTS = 3000  # minimum, so that an error in one request of ten shows


class MutantError(Exception):
    """A mutant can't be made, or its run gave no result."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement in one file; `old` must be in it exactly once."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken system: the edits, the faults under which it must show, and the checker's words for it."""

    name: str
    edits: tuple[Edit, ...]
    faults: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()  # one of these is in the violations
    rate: int = 600  # events/s
    trim: bool = False
    recovery_seconds: int = RECOVERY_SECONDS
    replicated: bool = False  # with copies of the servers
    longest: bool = False  # each fault has its maximum duration, because the effect takes time to show
    test: str = ""  # for a mutant without a run: the test that must fail on it, as pytest names it


def mutated(mutant: Mutant) -> dict[str, str]:
    """The changed files' texts by path. Raises MutantError if the source no longer has the text to change."""
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.get(edit.path) or (ROOT / edit.path).read_text()
        count = text.count(edit.old)
        if count != 1:
            raise MutantError(f"{mutant.name}: {edit.path} has its text {count} times, not once: {edit.old!r}")
        texts[edit.path] = text.replace(edit.old, edit.new)
    return texts


@contextmanager
def _copy_of_the_source(texts: dict[str, str]) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-mutant-"))
    folder.chmod(0o755)
    try:
        for source in _SOURCES:
            target = folder / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)
        for path, text in texts.items():
            (folder / path).write_text(text)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_mutant(mutant: Mutant, *, texts: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a mutant and return the result as JSON. Raises MutantError if there is none."""
    with _copy_of_the_source(mutated(mutant) if texts is None else texts) as folder:
        words = [
            *("--faults", str(len(mutant.faults)), "--only", ",".join(mutant.faults)),
            *("--events", str(_EVENTS)),
            *("--seed", str(_SEED), "--clients", "1", "--ingests", "1", "--rate", str(mutant.rate)),
            *("--trim", "on" if mutant.trim else "off"),
            *("--topology", "replicated" if mutant.replicated else "single"),
            *(["--longest"] if mutant.longest else []),
            *("--recovery", str(mutant.recovery_seconds), "--out", str(folder / "out"), "--home", str(folder / "home")),
        ]
        said = _run_in(folder, [sys.executable, "-m", "checks.soak", *words])
        results = list((folder / "out").glob("*.json"))
        if not results:
            raise MutantError(f"{mutant.name}: no result: {said.stdout[-1500:]}{said.stderr[-1500:]}")
        result: dict[str, Any] = json.loads(results[0].read_text())
        return result


def _run_in(folder: Path, command: list[str]) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def is_caught(mutant: Mutant, result: dict[str, Any]) -> bool:
    """Whether the checker reported the defect of this mutant."""
    return any(words in violation for words in mutant.expected for violation in result["violations"])


def fails_its_test(mutant: Mutant) -> bool:
    """Whether a mutant's named test fails on it. Raises MutantError if the test could not run."""
    with _copy_of_the_source(mutated(mutant)) as folder:
        said = _run_in(folder, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", mutant.test])
        if said.returncode not in (0, _TESTS_FAILED):
            raise MutantError(
                f"{mutant.name}: {mutant.test} could not be run: {said.stdout[-1500:]}{said.stderr[-500:]}"
            )
        return said.returncode == _TESTS_FAILED


def _try(mutant: Mutant) -> tuple[bool, list[str]]:
    """Whether a mutant was caught, and by what. Raises MutantError."""
    if mutant.test:
        return fails_its_test(mutant), [f"by {mutant.test}"]
    result = run_mutant(mutant)
    caught = is_caught(mutant, result)
    return caught, result["violations"] + ([] if caught else [json.dumps(result["done"])])


def main(names: list[str], mutants: Sequence[Mutant]) -> int:
    """Run the mutants named, or all. Exit status: 0 each was caught, 1 one was not, 2 one could not be run."""
    unknown = set(names) - {mutant.name for mutant in mutants}
    if unknown:
        print(f"mutants: there is no {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    asked = [mutant for mutant in mutants if not names or mutant.name in names]
    missed, not_run = [], []
    for mutant in asked:
        began = time.monotonic()
        try:
            caught, words = _try(mutant)
        except MutantError as error:
            print(f"mutants: {error}", file=sys.stderr)
            not_run.append(mutant.name)
            continue
        if not caught:
            missed.append(mutant.name)
        print(f"{'caught' if caught else 'MISSED'}  {mutant.name} ({time.monotonic() - began:.0f} s)", flush=True)
        for word in words:
            print(f"        {word}", flush=True)
    print(f"{len(asked) - len(missed) - len(not_run)} of {len(asked)} mutants were caught")
    for what, some in (("missed", missed), ("could not be run", not_run)):
        if some:
            print(f"{what}: {', '.join(some)}")
    return 2 if not_run else 1 if missed else 0
