"""Finds the system that `./run.sh` or `sluice up` runs, for commands in a shell without addresses.

A start writes `running.json` into its folder. The system is running if its supervisor's process is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

URLS: Final = ("DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL")
SYSTEM_VARIABLE: Final = "SLUICE_SYSTEM"  # set in the shell after `./run.sh env`: the folder of the system
CODE: Final = Path(__file__).resolve().parent.parent  # the checkout, or where the package is installed
IS_CHECKOUT: Final = (CODE / "run.sh").is_file()
# What a message tells its reader to run, by what it is for: in a checkout, and where Sluice is installed as a package.
_COMMANDS: Final = {
    "up": ("./run.sh", "sluice up"),
    "stop": ("./run.sh stop", "sluice down"),
    "status": ("./run.sh status", "sluice status --programs"),
    "env": ("./run.sh env", "sluice env"),
    "keys": (".venv/bin/python -m tasks.keys", "sluice keys"),
}


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """Content of a running system's folder: its addresses and its start settings, as variables."""

    home: Path
    variables: Mapping[str, str]


def how_to(purpose: str) -> str:
    """The command for a purpose, for the reader of a message."""
    return _COMMANDS[purpose][0 if IS_CHECKOUT else 1]


def local_folder(environ: Mapping[str, str]) -> Path:
    """Where Sluice keeps what it makes: in the checkout, or, as an installed package, in the user's folder of data."""
    if IS_CHECKOUT:
        return CODE / ".local"
    named = environ.get("XDG_DATA_HOME", "")
    return (Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "share") / "sluice"


def home_of(environ: Mapping[str, str]) -> Path:
    """The folder of this checkout's or user's system, or the one named by SLUICE_HOME."""
    named = environ.get("SLUICE_HOME")
    return Path(named).expanduser().resolve() if named else local_folder(environ) / "system"


def supervisor_pid(home: Path) -> int | None:
    """The process id of the supervisor of the system in this folder; None if none is running."""
    try:
        pid = int((home / "supervisor.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    is_ours = b"supervisord" in command and str(home / "supervisord.conf").encode() in command
    return pid if is_ours else None


def find(home: Path) -> RunningSystem | None:
    """The system that runs in a folder; None if none does."""
    if supervisor_pid(home) is None:
        return None
    try:
        state = json.loads((home / "running.json").read_text())
        return RunningSystem(home, {**state.get("settings", {}), **state["urls"]})
    except (OSError, ValueError, KeyError):
        return None


def with_running_system(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with the variables of the running system added; unchanged if there is no such system.

    Applies only if the environment names no server, or if it has the addresses of exactly that system: then the
    system's other settings (a key prefix, thresholds) are missing there.
    """
    is_named = _is_named(environ)
    home = Path(environ[SYSTEM_VARIABLE]) if environ.get(SYSTEM_VARIABLE) else home_of(environ)
    if is_named and not environ.get(SYSTEM_VARIABLE):
        return dict(environ)
    found = find(home)
    return dict(environ) if found is None else {**found.variables, **{k: v for k, v in environ.items() if v}}


def _is_named(environ: Mapping[str, str]) -> bool:
    """Whether the environment has the address of a server, or of a file with one."""
    return any(environ.get(name) or environ.get(f"{name}_FILE") for name in URLS)


def nothing_to_ask(environ: Mapping[str, str]) -> str | None:
    """The reason why there is no server to read, in one line; None if some are named or found."""
    if _is_named(environ) or find(home_of(environ)) is not None:
        return None
    return (
        f"no system runs in {home_of(environ)}, and none of {', '.join(URLS)} is set: {how_to('up')} starts one, or "
        "set them"
    )


def stopped_system(environ: Mapping[str, str]) -> str | None:
    """The system whose addresses this shell has, in one line, if it does not run; None if it runs, or there is none."""
    home = Path(environ.get(SYSTEM_VARIABLE, ""))
    if not environ.get(SYSTEM_VARIABLE) or supervisor_pid(home) is not None:
        return None
    try:
        urls = json.loads((home / "running.json").read_text())["urls"]
    except (OSError, ValueError, KeyError):
        return None
    if any(environ.get(name) != urls.get(name) for name in URLS):
        return None
    return f"the system in {home}, whose addresses this shell has, does not run: {how_to('up')} starts it"
