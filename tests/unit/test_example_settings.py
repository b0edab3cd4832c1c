"""The examples: what they set was tried elsewhere, their compose files can be read, and nothing is forgotten."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from checks.testbed.processes import ROOT

EXAMPLES = ROOT / "examples"
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
PINNED = re.compile(r"^[\w.-]+==[\w.]+$", re.MULTILINE)


def first_block(example: str) -> list[str]:
    """The commands at the beginning of a README."""
    found = re.search(r"^```\n(.*?)^```$", (EXAMPLES / example / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].splitlines()


@pytest.mark.parametrize("example", NAMES)
def test_an_example_has_two_commands_about_files_that_are_there(example: str) -> None:
    commands = first_block(example)
    assert len(commands) == 2
    for path in re.findall(r"(?:examples|clients)/[\w./-]+", " ".join(commands)):
        assert (ROOT / path).exists(), path
    # And no command installs into the system's Python, which Debian's pip refuses
    for command in commands:
        assert "pip install" not in command or f" .local/{example}/bin/pip install" in command
    assert f"({example}/README.md)" in (EXAMPLES / "README.md").read_text()


@pytest.fixture(params=NAMES)
def compose(request: pytest.FixtureRequest, missing: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    if shutil.which("docker-compose") is None:
        missing("there is no docker-compose (Debian: docker-compose)")
    folder = EXAMPLES / str(request.param)
    said = subprocess.run(
        ["docker-compose", "-f", folder / "docker-compose.yml", "config"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "LOGS": "/logs", "OUT": "/pictures"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return folder, yaml.safe_load(said.stdout)


def test_a_compose_file_finds_sluice_and_what_it_mounts(compose: tuple[Path, dict[str, Any]]) -> None:
    folder, document = compose
    for name, service in document["services"].items():
        assert service["network_mode"] == "host", name
        assert service["mem_limit"], name
        assert re.search(r":[\w.-]*\d[\w.-]*$", service["image"]), f"{name}: {service['image']} moves"
        for volume in service["volumes"]:
            source, _, target = volume.partition(":")
            assert not source.startswith(str(ROOT)) or Path(source).exists(), volume
            assert source in {"/logs", "/pictures", *document.get("volumes", {})} or source.startswith(str(ROOT)), (
                volume
            )
            if source.startswith(str(folder)) and Path(source).is_file():  # a file is where the command looks for it
                assert target.removesuffix(":ro") in str(service["command"])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/requirements.txt")), ids=lambda path: path.parent.name)
def test_versions_are_those_that_the_tests_have(path: Path) -> None:
    tested = "".join(one.read_text() for one in ROOT.glob("requirements*.txt"))
    pins = PINNED.findall(path.read_text())
    assert len(pins) == len(path.read_text().splitlines())
    for pin in pins:
        assert re.search(rf"^{re.escape(pin)}\b", tested, re.MULTILINE), pin


def test_the_collector_has_the_settings_that_were_tried() -> None:
    ours = yaml.safe_load((EXAMPLES / "otel-collector" / "collector.yaml").read_text())
    tried = yaml.safe_load((ROOT / "checks" / "testbed" / "collector" / "collector.yaml").read_text().replace("@", ""))
    for document in (ours, tried):
        document["exporters"]["otlphttp"].pop("endpoint")
    assert ours["exporters"] == tried["exporters"]
    assert ours["service"] == tried["service"]
    assert set(ours["extensions"]) == set(tried["extensions"])
    assert set(ours["receivers"]["filelog"]) - {"storage"} == set(tried["receivers"]["filelog"])
    # And the page about it recommends them
    row = next(
        line for line in page("otlp.md").splitlines() if line.startswith("| OpenTelemetry Collector, `otlphttp`")
    )
    wanted = yaml.safe_load(re.findall(r"`(retry_on_failure: [^`]+)`", row)[0])
    assert wanted["retry_on_failure"].items() <= ours["exporters"]["otlphttp"]["retry_on_failure"].items()
    assert "`storage: file_storage`" in row


def page(name: str) -> str:
    return (ROOT / "docs" / "protocols" / name).read_text()


def sections(path: Path) -> list[tuple[str, dict[str, str]]]:
    """A classic configuration of Fluent Bit: its sections, with the keys of each in lower case."""
    found: list[tuple[str, dict[str, str]]] = []
    for line in path.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("["):
            found.append((text.strip("[]"), {}))
        elif text:
            key, value = text.split(maxsplit=1)
            assert line.startswith("    "), line
            assert key not in found[-1][1], line
            found[-1][1][key.lower()] = value
    return found


@pytest.mark.parametrize("example", ["fluent-bit", "rsyslog"])
def test_fluent_bit_has_the_settings_of_its_page(example: str) -> None:
    found = sections(EXAMPLES / example / "fluent-bit.conf")
    [output] = [keys for name, keys in found if name == "OUTPUT"]
    row = re.search(r"^\| Fluent Bit, output `(\w+)` \| (.+) \|$", (ROOT / "docs" / "protocols.md").read_text(), re.M)
    assert row is not None
    wanted = dict(setting.split() for setting in re.findall(r"`([^`]+)`", row[2]))
    assert len(wanted) == 3
    assert output == {"name": row[1], "match": "*", "host": "localhost", "port": "8080", **wanted}
    # And what waits is on disk, as the page about Loki advises
    assert "`storage.type filesystem` on the input" in page("loki.md")
    [source] = [keys for name, keys in found if name == "INPUT"]
    assert source["storage.type"] == "filesystem"
    assert dict(found)["SERVICE"]["storage.path"].startswith("/var/lib/fluent-bit")


def test_rsyslog_has_the_template_that_was_tried_and_reaches_fluent_bit() -> None:
    ours = (EXAMPLES / "rsyslog" / "rsyslog.conf").read_text()
    tried = (ROOT / "checks" / "clients" / "debian" / "rsyslog.conf").read_text()
    template = re.compile(r"^template\(.*?^\}$", re.MULTILINE | re.DOTALL)
    assert template.findall(ours) == template.findall(tried) != []
    for setting in ('action.resumeRetryCount="-1"', 'action.resumeInterval="1"', 'queue.type="LinkedList"'):
        assert setting in ours
        assert setting in tried
    [source] = [keys for name, keys in sections(EXAMPLES / "rsyslog" / "fluent-bit.conf") if name == "INPUT"]
    assert f'target="{source["listen"]}" port="{source["port"]}" protocol="tcp"' in ours
    assert "Send with `omfwd` to" in page("elasticsearch.md")
