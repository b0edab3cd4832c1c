"""The real clients: their pins, how they are fetched and started, and what their pages say of their losses."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from checks.clients import run
from checks.clients.catalog import CLIENTS, Client
from checks.clients.judge import May, Situation
from checks.clients.kits import DEBIAN, NPM
from checks.clients.run import Plan, Sender
from checks.clients.sluice import NotReadyError, message, wait_for
from checks.testbed.kits import Kit, KitError
from pipeline.errors import StoreUnavailableError

DOCS = Path(__file__).parents[2] / "docs"
LOSS = re.compile(r"drop|lose|lost|loss|raise")
COLUMNS = {
    Situation.LIMIT: ("429",),
    Situation.CUT: ("cut",),
    Situation.RESTART: ("429", "cut"),  # connections are refused, and then requests until the event log answers
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def row_of(client: Client) -> dict[str, str]:
    """The client's row in the table of its page, by the heads of the columns."""
    head: list[str] = []
    before = ""
    for line in (DOCS / client.page).read_text().splitlines():
        if line.startswith("|---"):
            head = cells(before)
        if line.startswith(f"| {client.row}") and any("429" in one for one in head):
            return dict(zip(head, cells(line), strict=True))
        before = line
    raise AssertionError(f"{client.page} has no row {client.row}")


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_loses_only_where_its_page_says_so(client: Client) -> None:
    row = row_of(client)
    for situation in Situation:
        found = [cell for head, cell in row.items() if any(word in head for word in COLUMNS[situation])]
        if May.LOSE in client.may(situation):
            assert any(map(LOSS.search, found)), (situation, found)
        if May.DOUBLE in client.may(situation):
            assert any("twice" in cell for cell in found), (situation, found)


def test_names_are_unique() -> None:
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)


@pytest.mark.parametrize("client", [one for one in CLIENTS if one.kit is not DEBIAN], ids=lambda client: client.name)
def test_the_version_is_pinned(client: Client) -> None:
    version = client.kit.versions(client.kit.folder)[client.package]
    assert re.fullmatch(r"\d+\.\d+\.\d+[\w.-]*", version), "no range"


def test_no_file_names_a_registry() -> None:
    for path in (path for kit in {client.kit.folder for client in CLIENTS} for path in kit.rglob("*")):
        if path.suffix in (".json", ".xml", ".mod", ".sh"):
            hosts = set(re.findall(r"https?://([\w.-]+)", path.read_text()))
            assert hosts <= {"maven.apache.org"}, path  # the name of the format of a pom.xml


# --- Kits -----------------------------------------------------------------------------------------


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    folder = tmp_path / "source" / "some"
    folder.mkdir(parents=True)
    (folder / "pins").write_text("1.0")
    return Kit(folder, ("python3",), (("sh", "-c", "cat pins >> installed"),), lambda _: {})


def test_a_kit_is_installed_once_and_again_after_a_change(kit: Kit, tmp_path: Path) -> None:
    first = kit.installed(tmp_path / "cache")
    assert kit.installed(tmp_path / "cache") == first
    assert (first / "installed").read_text() == "1.0"
    (kit.folder / "pins").write_text("2.0")
    second = kit.installed(tmp_path / "cache")
    assert second != first
    assert (second / "installed").read_text() == "2.0"
    assert not (kit.folder / "installed").exists()


def test_an_installation_that_failed_is_not_taken_for_one(kit: Kit, tmp_path: Path) -> None:
    failing = replace(kit, install=(("sh", "-c", "echo begun >> installed"), ("sh", "-c", "echo no such >&2; exit 1")))
    for _ in range(2):
        with pytest.raises(KitError, match="no such"):
            failing.installed(tmp_path / "cache")


def test_a_program_that_is_missing_is_named(kit: Kit) -> None:
    assert kit.missing() == ""
    assert replace(kit, programs=("sh", "no-such-program", "sh")).missing() == "no-such-program"


def test_versions_of_debians_packages(tmp_path: Path) -> None:
    (tmp_path / "rsyslog_8.2302.0-1+deb12u1_amd64.deb").touch()
    (tmp_path / "some_1%3a2.0_all.deb").touch()
    assert DEBIAN.versions(tmp_path) == {"rsyslog": "8.2302.0-1+deb12u1", "some": "1:2.0"}


# --- A client as a process ----------------------------------------------------------------------------

PLAN = Plan(messages=100, per_second=10_000)
PROGRAM = Client(
    "some", "some", NPM, "lines", "lines", "/", "", "some",
    (sys.executable, "-c", "import os; print(os.environ['RUN'], os.environ['SLUICE_URL'], os.environ['MINE'])"),
    environ={"MINE": "{port} {work}"},
)  # fmt: skip
SHIPPER = replace(
    PROGRAM,
    command=(sys.executable, "-c", "import sys, time; open(sys.argv[1]); time.sleep(600)", "{work}/some.conf"),
    config="some.conf",
)


def test_a_program_gets_the_run_and_the_address(tmp_path: Path) -> None:
    sender = Sender(PROGRAM, tmp_path, tmp_path / "work", 4711, PLAN)
    sender.start()
    assert sender.wait(lambda: 0) == []
    assert sender.log_path.read_text() == f"{sender.run} http://127.0.0.1:4711 4711 {tmp_path / 'work'}\n"


def test_a_program_that_fails_is_a_problem(tmp_path: Path) -> None:
    failing = replace(PROGRAM, command=(sys.executable, "-c", "import sys; sys.exit('no such host')"))
    sender = Sender(failing, tmp_path, tmp_path / "work", 4711, PLAN)
    sender.start()
    assert sender.wait(lambda: 0) == ["the client ended with status 1: no such host"]
    assert sender.has_failed()


def test_a_program_that_does_not_end_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_END_SECONDS_MAX", 0.1)
    endless = replace(PROGRAM, command=(sys.executable, "-c", "import time; time.sleep(600)"))
    sender = Sender(endless, tmp_path, tmp_path / "work", 4711, PLAN)
    sender.start()
    assert sender.wait(lambda: 0) == ["the client did not end within 0 s"]
    sender.stop()


def test_a_shipper_reads_every_message_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_QUIET_SECONDS_MAX", 0.1)
    (tmp_path / "some.conf").write_text("file @WORK@/input.log, port @PORT@")
    sender = Sender(SHIPPER, tmp_path, tmp_path / "work", 4711, PLAN)
    sender.start()
    try:
        assert sender.wait(lambda: 3) == [], "it has given up the rest, which is for the judge"
        lines = (tmp_path / "work" / "input.log").read_text().splitlines()
        assert lines == [message(sender.run, number) for number in range(PLAN.messages)]
    finally:
        sender.stop()
    assert (tmp_path / "work" / "some.conf").read_text() == f"file {tmp_path / 'work'}/input.log, port 4711"


def test_a_shipper_that_ends_by_itself_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "some.conf").write_text("")
    failing = replace(SHIPPER, command=(sys.executable, "-c", "raise SystemExit('bad configuration')"))
    sender = Sender(failing, tmp_path, tmp_path / "work", 4711, PLAN)
    sender.start()
    assert sender.wait(lambda: 0) == ["the shipper ended with status 1: bad configuration"]


def test_a_control_store_that_does_not_answer_yet_is_waited_for() -> None:
    errors = [StoreUnavailableError("no answer"), OSError()]

    def condition() -> bool:
        if errors:
            raise errors.pop()
        return True

    wait_for(condition, "it answers")
    with pytest.raises(NotReadyError, match="it answers"):
        wait_for(lambda: False, "it answers", seconds_max=0.1)
