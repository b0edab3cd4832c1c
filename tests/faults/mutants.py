"""`./soak.sh --mutants`: the checker is tested on systems that break their promises.

Each mutant takes one defence away, with those that stand behind it, in a copy of the source; a short run under the
faults that the defence is for must then be judged as broken, in the words expected. A mutant whose text is no longer
in the source is an error: it would test nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.processes import ROOT

_SOURCES = ("ingest", "pipeline", "tasks", "stack", "tests/faults", "tests/support", "beat_schedule.py")
_RECOVERY_SECONDS = 8  # a mutant may stand still for ever; what it broke shows in what is stored
_SEED = 11


class MutantError(Exception):
    """A mutant can't be made, or a run of it said nothing."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement in one file; `old` must be in it exactly once."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken system: what is changed, under which faults it must show, and how the checker says it."""

    name: str
    edits: tuple[Edit, ...]
    faults: tuple[str, ...]
    expected: tuple[str, ...]  # one of these is in the violations
    rate: int = 600  # events/s
    trim: bool = False


_LOST = "acknowledged, and neither stored nor a dead letter"
_SKIPPED = "below the stored offset, in the log, and not stored"
_POSTGRES = "pipeline/sink/postgres.py"
_QUERIES = "pipeline/sink/queries.sql"
_CAS = "\n    WHERE stored.next_offset = %(expected_offset)s"

MUTANTS = (
    Mutant(
        "acknowledge-before-append",
        (
            Edit(
                "ingest/routes.py",
                "        await edge.appender.append(entries, size)\n",
                "        edge.appender.append(entries, size)\n",
            ),
        ),
        ("log.kill", "ingest.kill", "log.freeze"),
        (_LOST,),
    ),
    Mutant(
        "offset-in-a-transaction-of-its-own",
        (
            Edit(
                _POSTGRES,
                "        if moved == 0:\n",
                '        self.session.commit()\n        self.session.count("BEGIN")\n        if moved == 0:\n',
            ),
        ),
        ("copy.terminate",),
        (_SKIPPED,),
    ),
    Mutant(
        "no-lock-no-compare-and-swap-no-unique-index",
        (
            Edit(
                _POSTGRES,
                "        if key in self._locks():\n            return True",
                "        if key:\n            return True",
            ),
            Edit(_QUERIES, _CAS, ""),
            Edit("pipeline/sink/migrations/0001_events.sql", "NOT NULL PRIMARY KEY,", "NOT NULL,"),
        ),
        ("control-redis.flushall", "child.freeze"),
        ("stored more than once",),
    ),
    Mutant(
        "copy-error-swallowed",
        (
            Edit(
                _POSTGRES,
                "            except StatementRefusedError as refusal:\n",
                "            except SinkUnavailableError:\n"
                "                self._begin(log_id, partition, expected_offset, batch.next_offset)\n"
                "                written = Written()\n"
                "            except StatementRefusedError as refusal:\n",
            ),
        ),
        ("copy.terminate",),
        (_SKIPPED,),
    ),
    Mutant(
        "breaker-drops-the-batch",
        (
            # Told to all processes by a file: after an outage any of them may drain the partition.
            Edit(
                "pipeline/drain.py",
                "                return _ENDS[type(error)], str(error)\n",
                "                if isinstance(error, BreakerOpenError) and self._hand.first is not None:\n"
                '                    with open(f"dropped-{self._partition}", "w") as file:\n'
                "                        file.write(str(self._hand.first[1].next_offset))\n"
                "                return _ENDS[type(error)], str(error)\n",
            ),
            Edit(
                "pipeline/drain.py",
                "        self._hand.stored_up_to(identity.log_id, stored)\n",
                "        with contextlib.suppress(OSError), open(f'dropped-{self._partition}') as file:\n"
                "            stored = max(stored, int(file.read() or 0))\n"
                "        self._hand.stored_up_to(identity.log_id, stored)\n",
            ),
            Edit(_QUERIES, _CAS, _CAS.replace("=", "<=")),
        ),
        ("postgres.kill", "postgres.freeze"),
        (_SKIPPED,),
    ),
    Mutant(
        "append-with-maxlen",
        (
            Edit(
                "pipeline/log/append.lua",
                "redis.call('XADD', key, '0-*', 'v', ARGV[i])",
                "redis.call('XADD', key, 'MAXLEN', '=', '60', '0-*', 'v', ARGV[i])",
            ),
        ),
        ("postgres.freeze",),
        (_LOST,),
    ),
)


def mutated(mutant: Mutant) -> dict[str, str]:
    """The changed files' texts by path. Raises MutantError where the source is no longer what the mutant changes."""
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
    """A run of a mutant; its result as JSON. Raises MutantError where there was none."""
    with _copy_of_the_source(mutated(mutant) if texts is None else texts) as folder:
        words = [
            *("--faults", str(len(mutant.faults)), "--only", ",".join(mutant.faults), "--events", "1"),
            *("--seed", str(_SEED), "--clients", "1", "--ingests", "1", "--rate", str(mutant.rate)),
            *("--trim", "on" if mutant.trim else "off"),
            *("--recovery", str(_RECOVERY_SECONDS), "--out", str(folder / "out"), "--home", str(folder / "home")),
        ]
        said = subprocess.run(
            [sys.executable, "-m", "faults", *words],
            cwd=folder, env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        results = list((folder / "out").glob("*.json"))
        if not results:
            raise MutantError(f"{mutant.name}: no result: {said.stdout[-1500:]}{said.stderr[-1500:]}")
        result: dict[str, Any] = json.loads(results[0].read_text())
        return result


def is_caught(mutant: Mutant, result: dict[str, Any]) -> bool:
    """Whether the checker has said what is broken in this mutant."""
    return any(words in violation for words in mutant.expected for violation in result["violations"])


def main(names: list[str]) -> int:
    """Run the mutants named, or all; 0 where each was caught."""
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"mutants: there is no {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    missed = 0
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        began = time.monotonic()
        try:
            result = run_mutant(mutant)
        except MutantError as error:
            print(f"mutants: {error}", file=sys.stderr)
            return 2
        caught = is_caught(mutant, result)
        missed += not caught
        print(f"{'caught' if caught else 'MISSED'}  {mutant.name} ({time.monotonic() - began:.0f} s)")
        for violation in result["violations"]:
            print(f"        {violation}")
        if not caught:
            print(f"        {json.dumps(result['done'])}")
    return 1 if missed else 0
