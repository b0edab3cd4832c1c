"""Runs the fuzzer in several processes for a limited time on a copy of the kept corpus, and minimizes the corpus."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from checks.hostile.part import Part
from checks.hostile.seeds import write_seeds
from checks.hostile.siege import ROOT, environ

CORPUS: Final = ROOT / "tests" / "hostile" / "corpus"
INPUT_BYTES_MAX: Final = 2048  # longer ones make the fuzzer slow and find nothing that shorter ones do not
INPUT_SECONDS_MAX: Final = 10  # for one input, on a busy machine; a millisecond is usual
MEMORY_MIB_MAX: Final = 2048
SPARE_SECONDS: Final = 180.0  # beyond the requested time: start, reading the corpus, the last input
FILES_MAX: Final = 480  # of the kept corpus: each test of it reads all files
MERGE_SECONDS_MAX: Final = 900.0
_STATUS: Final = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_EXECUTED: Final = re.compile(r"stat::number_of_executed_units: (\d+)")
_INITED: Final = re.compile(r"\tINITED cov: (\d+) ft: (\d+)")


def missing() -> str | None:
    """Why the fuzzer can't run here; None if it can."""
    if importlib.util.find_spec("atheris") is None:
        return (
            "atheris is not installed: there are ready packages of it for Linux on x86-64 only (requirements-fuzz.txt)"
        )
    return None


def command(folders: Sequence[Path], *options: str) -> list[str]:
    """The fuzzer's command line."""
    bounds = [
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
    ]
    entry = str(ROOT / "checks" / "hostile" / "fuzz.py")
    return [sys.executable, entry, *map(str, folders), *bounds, *options]


def fuzz(folder: Path, *, seconds: int, seed: int, processes: int) -> Part:
    """Fuzz in `folder`; the inputs found are in its `corpus` afterwards, wrong ones in `wrong`."""
    part = Part("fuzz")
    if (reason := missing()) is not None:
        part.skipped = reason
        return part
    corpus, wrong = folder / "corpus", folder / "wrong"
    wrong.mkdir(parents=True, exist_ok=True)
    write_seeds(corpus)
    if CORPUS.is_dir():
        shutil.copytree(CORPUS, corpus, dirs_exist_ok=True)
    begun = len(list(corpus.iterdir()))
    logs = [folder / f"fuzz-{number}.log" for number in range(processes)]
    running = []
    try:
        for number, path in enumerate(logs):
            options = [f"-max_total_time={seconds}", f"-seed={seed + number}", "-print_final_stats=1"]
            with path.open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [*command([corpus], *options), f"-artifact_prefix={wrong}/"],
                        cwd=ROOT,
                        env=environ(),
                        stdout=log,
                        stderr=log,
                    )
                )
        for process in running:
            process.wait(seconds + SPARE_SECONDS)
    except subprocess.TimeoutExpired:
        part.problems.append(f"the fuzzer did not end within {seconds + SPARE_SECONDS:.0f} s")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
    executed = 0
    for process, path in zip(running, logs, strict=True):
        said = path.read_text(errors="replace")
        count = _EXECUTED.search(said)
        executed += int(count[1]) if count else 0
        if process.returncode != 0:
            part.problems.append(f"the fuzzer ended with {process.returncode}: …{said[-1500:]}")
        elif count is None or int(count[1]) <= begun:
            part.problems.append(f"the fuzzer got no further than its corpus: …{said[-500:]}")
        if (status := _STATUS.findall(said)) and (first := _INITED.search(said)):
            part.figures[path.stem] = {
                "seed": seed + int(path.stem[5:]),
                "features_at_first": int(first[2]),
                "features": int(status[-1][1]),
                "branches": int(status[-1][0]),
            }
    found = sorted(path.name for path in wrong.iterdir())
    part.problems += [f"wrong input: {name}" for name in found]
    part.figures |= {"executed": executed, "corpus_at_first": begun, "corpus": len(list(corpus.iterdir()))}
    part.lines.append(
        f"{executed:,} inputs in {seconds} s on {processes} processes, "
        f"{part.figures['corpus'] - begun} of them reached something new; {len(found)} were judged wrong"
    )
    return part


def keep(corpus: Path, folder: Path) -> int:
    """Replace the kept corpus by the smallest part of `corpus` with the same coverage; returns the number of files."""
    for option in ("-merge=1", "-set_cover_merge=1"):  # the second takes fewer files, and longer ones
        small = folder / option.strip("-=1")
        small.mkdir()
        run = subprocess.run(
            command([small, corpus], option),
            cwd=ROOT,
            env=environ(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MERGE_SECONDS_MAX,
            check=False,
        )
        found = len(list(small.iterdir()))
        if run.returncode != 0 or not found:
            raise RuntimeError(f"the corpus could not be made small: {run.stderr[-2000:]}")
        if found <= FILES_MAX:
            break
    shutil.rmtree(CORPUS, ignore_errors=True)
    shutil.copytree(small, CORPUS)
    return found
