"""The wheel of Sluice, in an environment of its own: what it contains, and its command."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from checks.testbed.waiting import RUN_SECONDS_MAX
from pipeline import __version__

ROOT = Path(__file__).parents[2]
# Files in the packages' folders that only a checkout needs.
LEFT_OUT = {"stack/setup.sh", "monitoring/tests/alerts.yml"}
SOURCES = ("beat_schedule.py", "ingest", "monitoring", "pipeline", "sluice", "stack", "tasks", "clients/python/src")


@dataclass
class Installed:
    """An environment with the wheel. The packages that it needs are those of the tests' environment."""

    wheel: Path
    folder: Path

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the command as a user of an empty home would."""
        return subprocess.run(
            [self.folder / "bin" / "sluice", *words],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS_MAX,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("package")
    source, made, environment = folder / "source", folder / "made", folder / "environment"
    (source / "clients" / "python").mkdir(parents=True)
    (source / "docs").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "docs/runbooks", *SOURCES):
        subprocess.run(["cp", "-r", str(ROOT / name), str((source / name).parent)], check=True)
    made.mkdir()
    # What pip runs in an environment for the build, which would be made first
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(made)!r})"
    said = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX
    )
    assert said.returncode == 0, said.stderr
    [wheel] = made.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=RUN_SECONDS_MAX
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(environment / "bin" / "python")]
    install = ["install", "--quiet", "--no-input", "--no-index", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=RUN_SECONDS_MAX)
    # Behind its own packages: these are not installed again, which would take minutes.
    [packages] = environment.glob("lib/python3*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(wheel, environment)


def files_of(source: str) -> Iterator[str]:
    """Every file of a package's folder, as it is named in the wheel."""
    if (ROOT / source).is_file():
        yield source
    for folder, folders, names in os.walk(ROOT / source, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.endswith((".egg-info", "_cache"))]
        for name in names:
            yield str((Path(folder) / name).relative_to(ROOT)).removeprefix("clients/python/src/")


def test_everything_that_the_code_reads_is_in_the_wheel(installed: Installed) -> None:
    wanted = {name for source in SOURCES for name in files_of(source)} - LEFT_OUT
    with zipfile.ZipFile(installed.wheel) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == wanted


def test_the_command_of_the_package_is_complete(installed: Installed) -> None:
    # Given an environment with the wheel, its version is this one's, from there
    said = installed.run("version")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"sluice {__version__}, ")
    assert str(installed.folder) in said.stdout
    # And it has all commands, of which none needs the checkout
    said = installed.run("--help")
    assert said.returncode == 0, said.stderr
    assert {"    up ", "    status ", "    keys "} <= {
        line[: line.find(" ", 5) + 1] for line in said.stdout.splitlines()
    }
    # And messages name commands that this user has, and folders of this user
    said = installed.run("down")
    assert (said.returncode, said.stdout) == (0, f"no system runs in {installed.folder}/.local/share/sluice/system\n")
    said = installed.run("env")
    assert said.returncode == 1
    assert said.stderr.endswith("sluice up starts one\n")
    # And what a package does not have, it says where to get
    said = installed.run("docs")
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert "has no documentation" in said.stderr
    assert "in a checkout" in said.stderr


def test_the_package_finds_its_parts(installed: Installed) -> None:
    # Each opens files beside its code, or imports all of it
    script = (
        "import stack.system, ingest.app, ingest.openapi.document, tasks.control, beat_schedule, sluice_client\n"
        "from pipeline.sink.migrate import migrations\n"
        "from stack.servers import ROOT\n"
        "print(len(migrations()), (ROOT / 'monitoring' / 'flowerconfig.py').exists(), stack.system.__file__)\n"
    )
    said = subprocess.run(
        [installed.folder / "bin" / "python", "-c", script],
        cwd=installed.folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(installed.folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )
    assert said.returncode == 0, said.stderr
    count, has_flower, place = said.stdout.split()
    assert int(count) == len(list((ROOT / "pipeline" / "sink" / "migrations").glob("*.sql")))
    assert has_flower == "True"
    assert place.startswith(str(installed.folder))
