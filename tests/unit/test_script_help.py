"""`--help` of every script: on a machine on which nothing was installed, and nothing is installed by it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.sh"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without a virtual environment."""
    folder = tmp_path_factory.mktemp("help") / "a checkout"
    folder.mkdir()
    for name in (*SCRIPTS, "checks", "pipeline", "stack", "requirements-servers.txt", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    # And the only Python sees no package
    python = folder / "programs" / "python3.13"  # the name that is tried first
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    return folder


def test_all_scripts_are_known() -> None:
    assert SCRIPTS == ["bench.sh", "hostile.sh", "load-test.sh", "run.sh", "soak.sh", "test.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_installs_nothing(checkout: Path, script: str) -> None:
    environ = {"PATH": f"{checkout / 'programs'}:/usr/bin:/bin", "HOME": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(
        [f"./{script}", "--help"], cwd=checkout, env=environ, capture_output=True, text=True, check=False, timeout=100
    )
    assert said.returncode == 0, said.stderr
    assert f"./{script}" in said.stdout.splitlines()[0]
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".local").exists()
