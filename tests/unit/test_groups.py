"""How ./test.sh shares its tests out to some processes: servers are started once, by the one that needs them."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from checks.testbed.waiting import RUN_SECONDS_MAX
from stack.servers import ports

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("asyncio", "anyio", "hypothesispytest", "timeout", "schemathesis")  # a process starts sooner without them
CONFTEST = """
import pytest
from support.groups import (
    SHARED_KAFKA, SharedServer, put_longest_first, pytest_runtest_teardown, pytest_xdist_make_scheduler
)

class Server:
    def start(self):
        return self

    def stop(self):
        print("STOPPED")

def pytest_collection_modifyitems(items):
    put_longest_first(items)

@pytest.fixture
def server(request, tmp_path):
    shared = request.config.stash.setdefault(SHARED_KAFKA, SharedServer(Server))
    if request.param == "kafka":
        return shared.running()
"""
TESTS = """
import pytest

@pytest.mark.parametrize("server", ["redis", "kafka"], indirect=True)
@pytest.mark.parametrize("number", range(3))
def test_it(server, number):
    assert server is None or number < 3
"""


def _run(folder: Path, *arguments: str) -> str:
    """What pytest says of four files of tests, of which two have tests on Kafka."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(CONFTEST)
    for name in ("contract/test_a", "integration/test_b", "unit/test_c", "unit/test_d"):
        path = folder / "tests" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TESTS)
    off = [word for plugin in PLUGINS for word in ("-p", f"no:{plugin}")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *off, *arguments],
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
    )
    return run.stdout


def test_the_tests_of_a_group_run_in_one_process(tmp_path: Path) -> None:
    arguments = re.findall(r"^parallel=\((-n .*)\)$", (ROOT / "test.sh").read_text(), re.MULTILINE)[0].split()
    said = _run(tmp_path, *arguments)
    processes = defaultdict(set)
    for process, file, log in re.findall(r"^\[(gw\d)\] .*? tests/(\S+)\.py::\S+(redis|kafka)", said, re.MULTILINE):
        processes["kafka" if log == "kafka" and not file.startswith("unit") else file].add(process)
    assert sorted(processes) == ["contract/test_a", "integration/test_b", "kafka", "unit/test_c", "unit/test_d"]
    assert all(len(some) == 1 for some in processes.values()), processes
    assert len(set.union(*processes.values())) == int(arguments[1])


def test_the_shared_kafka_ends_with_the_last_test_of_its_group(tmp_path: Path) -> None:
    said = _run(tmp_path, "-s")
    kafka, others = re.split("STOPPED", said, maxsplit=1)
    assert (
        re.findall(r"tests/(\w+)/\S+(redis|kafka)", kafka)
        == [("contract", "kafka")] * 3 + [("integration", "kafka")] * 3
    )
    assert len(re.findall("::test_it", others)) == 18


def test_the_system_of_the_end_to_end_tests_ends_with_them() -> None:
    # A fixture of the scope "package" lives as long as a session where the folder is no package.
    assert (ROOT / "tests" / "e2e" / "__init__.py").exists()


def test_no_two_files_of_tests_have_one_name() -> None:
    # A folder without __init__.py has no name of its own: the second of two files would not be collected
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in files]
    assert len(names) > 100
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_processes_that_run_tests_give_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_own_ports", [])
    monkeypatch.setattr(ports, "_given_ports", set())
    given, own = [], []
    for number in range(3):
        ports.keep_to_own_ports(number, 3)
        own += ports._own_ports
        given.append({ports.free_port() for _ in range(20)})
        assert given[-1] <= set(ports._own_ports)
    # Then none is given by two of them, and each is given by one
    assert sorted(own) == list(ports._PORTS)
