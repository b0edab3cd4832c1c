"""A PostgreSQL with a hot standby, which gets each commit before its confirmation and replaces a dead primary."""

import contextlib
import re
import subprocess
from pathlib import Path

import psycopg2

from checks.testbed.database import ask
from checks.testbed.waiting import wait_until
from stack.servers import LOOPBACK, Server, ServerError, free_port, postgres_bin, postgres_server
from stack.servers.postgres import as_unprivileged_user

# The standby soon retries its primary, and each server keeps the WAL that the other needs when it comes back. These
# settings are in the file, since pg_rewind's own start of a killed server reads them there.
_REPLICATION = "wal_retrieve_retry_interval = 200ms\nwal_keep_size = 1GB\n"
_JOIN_SECONDS_MAX = 120.0
_IN_SYNC = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"


def make_standby(primary: Server, folder: Path, port: int) -> Server:
    """A standby of a running primary, in a new folder, not started. Raises ServerError."""
    data = folder / "postgres"
    folder.mkdir(mode=0o755)
    data.mkdir(mode=0o700)
    _run(
        data,
        *("pg_basebackup", "-D", str(data), "-d", _admin_url(primary), "-R", "-X", "stream"),
        *("--checkpoint=fast", "--no-sync"),
    )
    standby = postgres_server(folder, port, durable=False)
    standby.url = re.sub(r":\d+/", f":{port}/", primary.url)
    standby.is_ready = lambda: _answers(standby.url)
    return standby


def _run(data: Path, program: str, *words: str) -> None:
    """Run one of PostgreSQL's programs as the owner of a data folder. Raises ServerError with its message."""
    command = [*as_unprivileged_user(data), str(postgres_bin() / program), *words]
    said = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    if said.returncode != 0:
        raise ServerError(f"{program} failed: {said.stderr.strip()[-500:]}")


def _admin_url(server: Server) -> str:
    """The URL of the database that always exists."""
    return re.sub(r"/\w+$", "/postgres", server.url)


def _answers(url: str) -> bool:
    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.Error:
        return False
    return True


def wait_replayed(primary: Server, standby: Server) -> None:
    """Wait until a query on the standby sees every present commit. Raises AssertionError, psycopg2.Error.

    In sync means less: the standby has the commits on its disk, but may not have applied them.
    """
    end = ask(_admin_url(primary), "SELECT pg_current_wal_insert_lsn()::text")[0][0]
    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
    wait_until(lambda: ask(_admin_url(standby), replayed) == [(True,)], f"the standby has replayed up to {end}")


class PostgresPair:
    """A primary and its hot standby, which change their roles with each failover.

    While the primary has a standby, each commit waits for it (`synchronous_standby_names`). A promoted server has no
    standby until the other server is back.
    """

    def __init__(self, folder: Path) -> None:
        """A primary that is not started, and no standby yet: `start` makes it from the running primary."""
        self._folder = folder
        self.primary = postgres_server(folder / "postgres-first", free_port(), durable=False)
        with (folder / "postgres-first" / "postgres" / "postgresql.conf").open("a") as file:
            file.write(_REPLICATION)
        self.ports = (self.primary.port, free_port())
        self.standby: Server  # from `start` on

    def start(self) -> "PostgresPair":
        """Start both, in sync. Raises ServerError, AssertionError."""
        self.primary.start()
        self.standby = make_standby(self.primary, self._folder / "postgres-second", self.ports[1])
        self.standby.start()
        self.wait_in_sync()
        return self

    def stop(self) -> None:
        if hasattr(self, "standby"):
            self.standby.stop()
        self.primary.stop()

    def wait_in_sync(self, *, seconds_max: float = _JOIN_SECONDS_MAX) -> None:
        """Wait until each commit waits for the standby, and it has all earlier ones. Raises AssertionError."""
        wait_until(self._is_streaming, "the standby follows", seconds_max=seconds_max)
        with contextlib.suppress(psycopg2.Error):  # the checks below would fail then
            ask(_admin_url(self.primary), "ALTER SYSTEM SET synchronous_standby_names = '*'")
            ask(_admin_url(self.primary), "SELECT pg_reload_conf()")
        wait_until(lambda: self._sees(_IN_SYNC), "the standby is in sync", seconds_max=seconds_max)
        end = ask(_admin_url(self.primary), "SELECT pg_current_wal_flush_lsn()::text")[0][0]
        wait_until(
            lambda: self._sees(f"SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{end}'"),
            "the standby has what did not wait for it",
            seconds_max=seconds_max,
        )

    def _is_streaming(self) -> bool:
        return self._sees("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")

    def _sees(self, count: str) -> bool:
        try:
            return ask(_admin_url(self.primary), count) == [(1,)]
        except psycopg2.Error:
            return False

    def promote(self) -> None:
        """Make the standby the primary. Raises psycopg2.Error, or ServerError if that takes over 120 s."""
        if ask(_admin_url(self.standby), "SELECT pg_promote(true, 120)") != [(True,)]:
            raise ServerError("the standby did not become the primary within 120 s")
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Start the other server, the killed primary, as the standby. Raises ServerError, AssertionError.

        pg_rewind removes commits that only this server has, and copies the new ones.
        """
        data = Path(self.standby.command[self.standby.command.index("-D") + 1])
        _run(data, "pg_rewind", "-D", str(data), "--source-server", _admin_url(self.primary), "-R", "--no-sync")
        port = self.standby.port
        self.standby.is_ready = lambda: _answers(re.sub(r":\d+/", f":{port}/", _admin_url(self.primary)))
        self.standby.start()
        self.wait_in_sync()


def url_of_both(user_and_database: str, first_port: int, second_port: int) -> str:
    """The URL that leads to the writable one of two servers. `user_and_database`: the URL of one of them."""
    user, _, rest = user_and_database.partition("@")
    hosts = f"{LOOPBACK}:{first_port},{LOOPBACK}:{second_port}"
    return f"{user}@{hosts}/{rest.rpartition('/')[2]}?target_session_attrs=read-write"
