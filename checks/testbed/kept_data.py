"""The data of an earlier version, small enough for this repository.

`python -m checks.testbed.kept_data FOLDER` writes it, with the code of that version on servers of its own: events that
are stored, and events that wait behind a pause by an operator, one of which is stored already. Then all its processes
are killed. tests/integration/test_old_data.py lets this version go on with it.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg2
import redis

from checks.testbed.database import ask
from checks.testbed.processes import Program, System, http_status
from checks.testbed.versions import old_checkout
from checks.testbed.waiting import RUN_SECONDS_MAX, eventually
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import free_port, kill_family, postgres_bin, postgres_server, redis_server

PARTITIONS: Final = 2
STORED: Final = 40  # events
WAITING: Final = 30
WHY: Final = "a new version"  # the reason of the pause
FILES: Final = ("log.json", "control.json", "database.sql")

_Client = Any  # a client of redis-py, without decoding


def kept_event(number: int) -> dict[str, Any]:
    """An event whose fields follow from its number."""
    return {
        "eventId": f"kept-{number}",
        "correlationId": f"c-{number % 7}",
        "severity": ("INFO", "WARN", "ERROR")[number % 3],
        "message": f"event {number}\twith a tab, a \\ and an é",
        "source": f"shop/{number % 5}",
        "timestamp": 1_700_000_000_000 + number,
        "attributes": {"number": number, "even": number % 2 == 0},
    }


# --- Redis --------------------------------------------------------------------------------------------------------


def dump_redis(client: _Client, prefix: str) -> dict[str, Any]:
    """Each key with the prefix that does not expire, but for Celery's, which are lists and sets; bytes are Latin-1."""
    keys = sorted(
        key for key in client.scan_iter(f"{prefix}*")
        if client.ttl(key) < 0 and client.type(key) not in (b"list", b"set") and b"_kombu" not in key
    )  # fmt: skip
    return {_text(key).removeprefix(prefix): _dump(client, key) for key in keys}


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _dump(client: _Client, key: bytes) -> Any:
    match client.type(key):
        case b"string":
            return _text(client.get(key))
        case b"hash":
            return {_text(name): _text(value) for name, value in client.hgetall(key).items()}
        case b"zset":
            return {"scores": {_text(name): score for name, score in client.zrange(key, 0, -1, withscores=True)}}
        case b"stream":
            about = client.xinfo_stream(key)
            entries = [
                [_text(entry), {_text(name): _text(value) for name, value in fields.items()}]
                for entry, fields in client.xrange(key)
            ]
            return {"entries": entries, "last": _text(about["last-generated-id"]), "added": about["entries-added"]}
        case other:
            raise TypeError(f"{key!r} is a {other!r}")


def load_redis(client: _Client, prefix: str, kept: Mapping[str, Any]) -> None:
    """Put keys of `dump_redis` back, with another prefix."""
    for name, value in kept.items():
        key = f"{prefix}{name}"
        if isinstance(value, str):
            client.set(key, value.encode("latin-1"))
        elif "scores" in value:
            client.zadd(key, {member.encode("latin-1"): score for member, score in value["scores"].items()})
        elif "entries" in value:
            client.xgroup_create(key, "made", mkstream=True)  # a stream may be empty
            client.xgroup_destroy(key, "made")
            for entry, fields in value["entries"]:
                client.xadd(key, {one.encode("latin-1"): text.encode("latin-1") for one, text in fields.items()}, entry)
            client.execute_command("XSETID", key, value["last"], "ENTRIESADDED", value["added"], "MAXDELETEDID", "0-0")
        else:
            client.hset(key, mapping={one: text.encode("latin-1") for one, text in value.items()})


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def dump_database(url: str) -> str:
    """The schema and the rows as SQL, without what differs from one dump to the next."""
    command = [str(postgres_bin() / "pg_dump"), "--inserts", "--no-owner", "--no-privileges", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in said.stdout.splitlines() if line and not line.startswith(("--", "\\", "SET transaction"))]
    return "\n".join(lines) + "\n"


def load_database(url: str, sql: str) -> None:
    """Make tables and rows of `dump_database` in an empty database."""
    with contextlib.closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql)


# --- Making it ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Write the files of FOLDER."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder: Path = parser.parse_args().folder
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-kept-")))
        old = old_checkout(home)
        if old is None:
            sys.stderr.write("the history of this checkout does not reach back to that version\n")
            return 1
        servers = [
            postgres_server(home, free_port(), durable=False),
            redis_server(home, free_port(), is_log=False, maxmemory="64mb", durable=False),
            redis_server(home, free_port(), is_log=True, maxmemory="64mb", durable=False),
        ]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        database, control, log = (server.url for server in servers)
        settings = Settings(
            database_url=database, redis_url=control, event_log_url=log, log_partitions=PARTITIONS,
            ingest_port=free_port(), append_seconds_max=15.0, sink_call_seconds_max=10.0, rate_min=1000.0,
        )  # fmt: skip
        _use(replace(settings, regulate_seconds=0.5), home, old)
        folder.mkdir(parents=True, exist_ok=True)
        for name, url in (("log.json", log), ("control.json", control)):
            kept = dump_redis(redis.Redis.from_url(url), settings.key_prefix)
            (folder / name).write_text(json.dumps(kept, indent=1) + "\n")
        (folder / "database.sql").write_text(dump_database(database))
    return 0


def _use(settings: Settings, home: Path, old: Path) -> None:
    """Run the old version, and kill it while events wait."""
    system = System(settings, home)
    for program in system.programs:
        program.root = old
    try:
        for program in system.programs:
            program.start()
        eventually(lambda: http_status(f"{system.url}/readyz") == 200, "ingest is ready")
        eventually(lambda: system.health()["status"] == "healthy", "all of it works")
        _send(system, [kept_event(number) for number in range(STORED)])
        _wait_rows(settings, "log_events", STORED)
        words = ["-m", "celery", "-A", "tasks.app", "control", "pause_consumption", WHY]
        subprocess.run(
            [sys.executable, *words],
            cwd=old,
            check=True,
            timeout=RUN_SECONDS_MAX,
            stdout=subprocess.DEVNULL,
            env={**environ_with(settings), "USER": "ann", "LOGNAME": "ann"},
        )
        eventually(lambda: system.health()["consumption"] == "paused", "consumption is paused")
        # The first of these is sent again: its client did not hear of the 202
        _send(system, [kept_event(0), *(kept_event(number) for number in range(STORED, STORED + WAITING))])
    finally:
        for program in system.programs:
            _kill_all(program)


def _send(system: System, events: list[dict[str, Any]]) -> None:
    request = urllib.request.Request(
        f"{system.url}/api/logs", data=json.dumps(events).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 202, answer.status


def _wait_rows(settings: Settings, table: str, count: int) -> None:
    def has_them() -> bool:
        return ask(settings.database_url, f"SELECT count(*) FROM {table}") == [(count,)]

    eventually(has_them, f"{table} has {count} rows", passing=(psycopg2.Error,))


def _kill_all(program: Program) -> None:
    if program.is_running:
        kill_family(psutil.Process(program.pid))
        program.kill()


if __name__ == "__main__":
    sys.exit(main())
