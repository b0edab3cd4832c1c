"""pgbouncer in front of a test's or a judge's own PostgreSQL."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from stack.servers import LOOPBACK, Server, free_port


def pgbouncer_program() -> str | None:
    """The path of pgbouncer, None if it is missing. Debian installs it in a folder that a user's PATH lacks."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def pooled(program: str, folder: Path, database_url: str, pool_mode: str, *, pool_size: int = 5) -> Iterator[str]:
    """The URL of the same database behind a pgbouncer of this mode."""
    port, address = free_port(), database_url.rpartition("@")[2]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pgbouncer.ini"
    name = address.rpartition("/")[2]
    file.write_text(
        "[databases]\n"
        f"{name} = host={LOOPBACK} port={address.partition(':')[2].partition('/')[0]} dbname={name} user=sluice\n"
        "[pgbouncer]\n"
        f"listen_addr = {LOOPBACK}\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\nserver_idle_timeout = 60\n"
    )
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    url = f"postgresql://sluice@{LOOPBACK}:{port}/{name}"

    def is_ready() -> bool:
        try:
            psycopg2.connect(url, connect_timeout=2).close()
        except psycopg2.Error:
            return False
        return True

    server = Server("pgbouncer", [program, *as_nobody, str(file)], folder / "pgbouncer.log", url, port, is_ready)
    try:
        yield server.start().url
    finally:
        server.stop()
