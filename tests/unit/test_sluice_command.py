"""The command `sluice`: what each of its commands calls, its help, its errors, and what its package is made from."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ingest.client.send
import pipeline.__main__
import stack.__main__
import tasks.keys
from pipeline import __version__, running
from sluice import commands
from sluice.__main__ import main
from sluice.arguments import COMMANDS, EXIT_USAGE, make_parser
from tasks import remote
from tasks.remote_client import SluiceControl

ROOT = Path(__file__).parents[2]


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False,
        timeout=100,
    )  # fmt: skip


def test_every_help_needs_no_package() -> None:
    # Given a Python that sees no installed package
    script = (
        "from sluice.arguments import COMMANDS, make_parser\n"
        "for name in COMMANDS:\n"
        "    try:\n        make_parser((name,)).parse_args((name, '--help'))\n    except SystemExit:\n        pass\n"
    )
    said = run("-S", "-c", script)
    assert said.stderr == ""
    assert re.findall(r"^usage: sluice ([\w-]+)", said.stdout, re.M) == list(COMMANDS)


def test_the_list_of_commands_says_what_each_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert re.findall(r"^    ([a-z]+)\b", said, re.M) == list(COMMANDS)


@pytest.mark.parametrize(
    ("words", "module", "called"),
    [
        (["up", "--log", "kafka", "--detach"], stack.__main__, ["up", "--log", "kafka", "--detach"]),
        (["down"], stack.__main__, ["stop"]),
        (["logs", "ingest-0"], stack.__main__, ["logs", "ingest-0"]),
        (["env"], stack.__main__, ["env"]),
        (["status", "--programs"], stack.__main__, ["status"]),
        (["status", "--json"], pipeline.__main__, ["status", "--json"]),
        (["migrate"], pipeline.__main__, ["migrate"]),
        (["send", "-", "--quiet"], ingest.client.send, ["-", "--quiet"]),
        (["keys", "create", "shop", "--days", "2"], tasks.keys, ["create", "shop", "--days", "2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_calls_the_code_that_exists(
    words: list[str], module: Any, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def instead(given: list[str], **_: Any) -> int:
        seen.append(given)
        return 7

    monkeypatch.setattr(module, "main", instead)
    assert main(words) == 7
    assert seen == [called]


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["gap", "3"], ("inspect", "gap", "3")),
        (["gap", "3", "--skip", "10", "20"], ("control", "skip_gap", "--", "3", "10", "20")),
        (
            ["gap", "3", "--skip", "10", "20", "--dry-run", "--why", "disk lost"],
            ("control", "skip_gap", "--", "--dry-run", "3", "10", "20", "disk lost"),
        ),
    ],
)
def test_gap_is_the_remote_command(words: list[str], called: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def instead(*given: str) -> int:
        seen.append(given)
        return 0

    monkeypatch.setattr(commands, "_celery", instead)
    assert main(words) == 0
    assert seen == [called]


@pytest.mark.parametrize(
    "why",
    ["see -d w1", "no --dry-run was made", "-- x", "look at --help", "--timeout 0 --json", "-t 1", "7", "disk lost"],
)
@pytest.mark.parametrize("is_dry_run", [False, True])
def test_the_reason_for_a_skip_stays_a_reason(why: str, is_dry_run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def broadcast(_: object, command: str, arguments: Any, *, destination: Any, **__: Any) -> list[Any]:
        sent.append((command, destination, remote._decision(arguments["words"], 3)))
        return [{"worker": {"ok": "done"}}]

    monkeypatch.setattr(SluiceControl, "broadcast", broadcast)
    assert main(["gap", "3", "--skip", "10", "20", f"--why={why}", *(["--dry-run"] if is_dry_run else [])]) == 0
    assert sent == [("skip_gap", None, ([3, 10, 20], why, is_dry_run))]


@pytest.mark.parametrize("why", ["--dry-run", " dry_run"])
def test_the_option_for_a_dry_run_is_no_reason(
    why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_celery", lambda *_: pytest.fail("it asked a worker"))
    assert main(["gap", "3", "--skip", "10", "20", f"--why={why}"]) == EXIT_USAGE
    assert "is no reason" in capsys.readouterr().err


def test_gap_skips_nothing_without_the_hole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_celery", lambda *_: pytest.fail("it asked a worker"))
    assert main(["gap", "3", "--dry-run"]) == EXIT_USAGE
    assert "--skip FROM TO" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "next_step"), [(["star"], "sluice --help"), (["gap", "x"], "sluice gap --help")])
def test_a_wrong_call_ends_with_the_next_step(
    words: list[str], next_step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == EXIT_USAGE
    assert capsys.readouterr().err.splitlines()[-1] == f"{next_step} shows what it takes"


def test_a_missing_package_of_the_private_servers_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*_: object, **__: object) -> int:
        raise ModuleNotFoundError("No module named 'supervisor'", name="supervisor")

    monkeypatch.setattr(stack.__main__, "main", without)
    assert main(["up"]) == 1
    assert "pipx install --force '.[servers]'" in capsys.readouterr().err


def test_without_the_package_of_a_system_its_commands_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    helped = make_parser(()).format_help()
    assert "    status " in helped
    assert "    up " not in helped


def test_the_version_names_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"sluice {__version__}, Python 3.")


def completions(line: str, tmp_path: Path) -> list[str]:
    """What a shell would offer after this line."""
    answer = tmp_path / "answer"
    said = run(
        "-m", "sluice", _ARGCOMPLETE="1", _ARGCOMPLETE_STDOUT_FILENAME=str(answer), _ARGCOMPLETE_IFS="\n",
        COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE="9", _ARGCOMPLETE_SUPPRESS_SPACE="1",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return answer.read_text().split("\n")


def test_a_shell_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert completions("sluice st", tmp_path) == ["status"]
    assert "--policy" in completions("sluice up --", tmp_path)
    # And the script that makes the shell ask is for this command
    assert main(["completion", "bash"]) == 0
    assert re.search(r"complete .* sluice\b", capsys.readouterr().out)


def test_messages_name_the_command_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    home = {"HOME": "/home/x"}
    assert (running.how_to("up"), running.how_to("stop")) == ("./run.sh", "./run.sh stop")
    assert running.home_of(home) == ROOT / ".local" / "system"
    monkeypatch.setattr(running, "IS_CHECKOUT", False)
    assert (running.how_to("up"), running.how_to("stop")) == ("sluice up", "sluice down")
    assert running.home_of({"XDG_DATA_HOME": "/data"}) == Path("/data/sluice/system")
    assert running.home_of({"XDG_DATA_HOME": "not absolute"}) == Path.home() / ".local/share/sluice/system"
    assert running.home_of({"SLUICE_HOME": "/elsewhere"}) == Path("/elsewhere")


def pins(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def test_the_package_needs_what_the_requirement_files_pin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [pin for pin in pins("requirements.txt") if not pin.startswith("pytest")]
    servers = [pin for pin in pins("requirements-servers.txt") if not pin.startswith("uv=")]
    extras = {"servers": servers, "confluent": pins("requirements-confluent.txt")}
    assert project["optional-dependencies"] == extras


PARTS = ("beat_schedule", "ingest", "monitoring", "pipeline", "sluice", "sluice_client", "stack", "tasks")
OF_CELERY = {"click", "kombu"}  # Celery is made of these: it brings the versions that it needs


def test_the_package_needs_whatever_its_code_imports() -> None:
    # Given the modules that the package's files import from elsewhere
    trees = [ROOT / "clients" / "python" / "src", *(ROOT / part for part in PARTS)]
    files = [ROOT / "beat_schedule.py", *(path for tree in trees for path in tree.rglob("*.py"))]
    imported = {module for path in files for module in modules_of(path)}
    others = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) - set(PARTS)
    # Then each is of a distribution that the package names
    lists = ("requirements.txt", "requirements-servers.txt", "requirements-confluent.txt")
    named = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for name in lists for pin in pins(name)}
    found = importlib.metadata.packages_distributions()
    brought = {one: {re.sub(r"[-_.]+", "-", name).lower() for name in found.get(one, ())} for one in others - OF_CELERY}
    assert len(brought) > 20
    assert [one for one, distributions in brought.items() if not distributions & named] == []


def modules_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def test_a_client_s_script_starts_the_whole_command_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sluice_client import command

    class Entry:
        def load(self) -> Any:
            return lambda: 42

    found = {"sluice.command": [Entry()]}
    monkeypatch.setattr(command, "entry_points", lambda *, group: found.get(group, []))
    assert command.run() == 42
    found.clear()
    monkeypatch.setattr(command, "main", lambda: 3)
    assert command.run() == 3
