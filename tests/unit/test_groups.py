"""How ./test.sh shares its tests out to two processes: servers are started once, by the one that needs them."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tests_of_a_file_run_in_one_process() -> None:
    arguments = re.findall(r"^parallel=\((-n .*)\)$", (ROOT / "test.sh").read_text(), re.MULTILINE)[0].split()
    files = ["tests/unit/test_flow_lag.py", "tests/unit/test_ingest_errors.py", "tests/unit/test_settings_table.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *arguments, *files],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    processes = defaultdict(set)
    for process, file in re.findall(r"^\[(gw\d)\] .*? (tests/\S+\.py)::", run.stdout, re.MULTILINE):
        processes[file].add(process)
    assert sorted(processes) == files
    assert all(len(some) == 1 for some in processes.values()), processes
    assert len(set.union(*processes.values())) == 2
