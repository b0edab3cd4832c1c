"""The tutorial, as a reader pastes it into a shell: docs/tutorial.md."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.testbed.processes import ROOT
from stack.config import free_ports

pytestmark = pytest.mark.timeout(500)

_MARK = "=== "


def commands(text: str) -> list[str]:
    """The commands of a page, in its order. Blocks without `bash` show output."""
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a reader's shell, with ports and a folder for this system."""
    # The folder is short: the sockets of servers are in it.
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SLUICE_HOME": str(tmp_path / "s"),
        "PROMETHEUS": "no",
    }
    environ |= free_ports()
    yield environ
    subprocess.run(["./run.sh", "stop"], cwd=ROOT, env=environ, capture_output=True, check=False, timeout=120)


def test_each_command_of_the_tutorial_does_what_it_says(shell: dict[str, str]) -> None:
    # Given the commands of the page
    blocks = commands((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 14
    script = "set -eu\n" + "".join(f"echo '{_MARK}{n}'\n{block}" for n, block in enumerate(blocks))
    # When all of them are pasted into one shell
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=shell, capture_output=True, text=True, check=False, timeout=450
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(part.split("\n", 1) for part in done.stdout.split(_MARK)[1:])
    outputs = list(said.values())

    def output_of(words: str) -> str:
        return outputs[next(n for n, block in enumerate(blocks) if words in block)]

    # Then the first event is a row, and one without a source is refused with the place of the mistake
    assert "202 Accepted" in output_of("curl -s -i")
    assert output_of("until psql").strip() == "tutorial|INFO|Hello"
    assert (
        '"field":"source","reason":"is missing"'
        in outputs[[n for n, block in enumerate(blocks) if "order-1" in block][1]]
    )
    # And of 200 events, some are accepted and others are refused, which the terminal says; a patient client gets all in
    codes = {line.split()[1]: line.split()[0] for line in output_of("n=[1-200]").splitlines()}
    assert set(codes) == {"202", "429"}
    assert "runbook: docs/runbooks/refusing.md" in output_of("At its limit")
    assert "30" in output_of("ingest.client")
    # And an outage opens the breaker, while events are accepted; it closes by itself
    outage = output_of("ALLOW_CONNECTIONS true")
    assert "breaker      closed" in outage
    during = output_of("In the dark").split("\n")
    assert any("open; consumption paused" in line for line in during)
    assert during.count("202") == 2
    # And what was acknowledged is what is stored, but for the first event
    count = output_of("acknowledged:")
    found = re.search(r"acknowledged: client 30, load (\d+), outage (\d+), tutorial 1", count)
    assert found is not None, count
    assert found[1] == codes["202"]
    assert set(count.splitlines()[1:]) == {f"load|{found[1]}", "client|30", f"outage|{found[2]}", "tutorial|1"}
    assert "stopped" in output_of("./run.sh stop")
