"""PostgreSQL servers of the tests for what DATABASE_URL can say: TLS, passwords, and several hosts."""

import contextlib
import dataclasses
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from checks.testbed.postgres_pair import make_standby, url_of_both
from stack.servers import LOOPBACK, Server, free_port, postgres_server
from stack.servers.postgres import as_unprivileged_user
from support.certificates import Authority

OWNER, OWNER_PASSWORD = "owner", "öwn@r:%/#"
OWNER_URL_PASSWORD = "%C3%B6wn%40r%3A%25%2F%23"
# Every connection by TCP needs TLS and a password.
_HBA = "hostssl all all 127.0.0.1/32 scram-sha-256\n"


def tls_programs() -> Path | None:
    """The folder of a PostgreSQL with TLS, None if there is none: the one in the wheel has none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def tls_postgres(home: Path, authority: Authority) -> Iterator[Server]:
    """A running server that only takes TLS and SCRAM, with a certificate for 127.0.0.1; its URL is the owner's."""
    programs = tls_programs()
    assert programs is not None
    data, port = home / "data", free_port()
    data.mkdir(parents=True, mode=0o700)
    secret = data.with_name("secret")
    secret.write_text(OWNER_PASSWORD + "\n")
    secret.chmod(0o644)
    prefix, environ = as_unprivileged_user(data), {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    subprocess.run(
        [
            *prefix, str(programs / "initdb"), "-D", str(data), "-U", OWNER, "-E", "UTF8", "--no-sync",
            "-A", "scram-sha-256", f"--pwfile={secret}",
        ],
        check=True, capture_output=True, cwd="/", env={**os.environ, **environ},
    )  # fmt: skip
    made = authority.issue("postgres")
    for source, name in ((made.certificate, "server.crt"), (made.key, "server.key")):
        target = data / name
        shutil.copy(source, target)
        target.chmod(0o600)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(target, nobody.pw_uid, nobody.pw_gid)
    (data / "pg_hba.conf").write_text(_HBA)
    command = [*prefix, str(programs / "postgres"), "-D", str(data)]
    for option in (
        f"port={port}", f"listen_addresses={LOOPBACK}", "unix_socket_directories=", "fsync=off", "ssl=on",
        "track_commit_timestamp=on",
    ):  # fmt: skip
        command += ["-c", option]
    url = f"postgresql://{OWNER}:{OWNER_URL_PASSWORD}@{LOOPBACK}:{port}/postgres"

    def is_ready() -> bool:
        try:
            psycopg2.connect(f"{url}?sslmode=require", connect_timeout=2).close()
        except psycopg2.Error:
            return False
        return True

    server = Server("postgres", command, home / "postgres.log", url, port, is_ready, environ, signal.SIGINT)
    try:
        yield server.start()
    finally:
        server.stop()


@dataclasses.dataclass
class Pair:
    """A primary and its hot standby."""

    primary: Server
    standby: Server

    @property
    def url(self) -> str:
        """Both, the standby first; whichever takes writes is used."""
        return url_of_both(self.primary.url, self.standby.port, self.primary.port)

    def promote(self) -> None:
        with contextlib.closing(psycopg2.connect(self.standby.url, connect_timeout=60)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_promote(true, 120)")


@contextlib.contextmanager
def primary_and_standby(home: Path) -> Iterator[Pair]:
    """Both running."""
    with contextlib.ExitStack() as stack:
        primary = postgres_server(home / "primary", free_port(), durable=False)
        stack.callback(primary.stop)
        primary.start()
        standby = make_standby(primary, home / "standby", free_port())
        stack.callback(standby.stop)
        standby.start()
        yield Pair(primary, standby)
