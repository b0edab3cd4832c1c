"""pgbouncer (Debian: pgbouncer) before a run's PostgreSQL, as a server that can be killed and started again."""

import contextlib
import os
from pathlib import Path

import psycopg2

from checks.testbed.pooler import pgbouncer_program
from stack.servers import DATABASE, LOOPBACK, Server, postgres_url

_SETTINGS = """\
[databases]
* = host={host} port={target_port} user=sluice
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 40
max_client_conn = 200
server_login_retry = 1
ignore_startup_parameters = extra_float_digits,options
"""


def pooler(folder: Path, port: int, target_port: int, *, mode: str = "session") -> Server:
    """A pgbouncer on `port`, before the private PostgreSQL on `target_port`. `mode` is its `pool_mode`."""
    program = pgbouncer_program()
    assert program is not None, "there is no pgbouncer on this machine"
    settings = folder / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(host=LOOPBACK, port=port, target_port=target_port, mode=mode))
    settings.chmod(0o644)  # it does not run as root, and changes its user
    command = [program, *(("-u", "nobody") if os.geteuid() == 0 else ()), str(settings)]

    def is_ready() -> bool:
        try:
            with contextlib.closing(psycopg2.connect(f"{postgres_url(port)}?connect_timeout=2")):
                return True
        except psycopg2.Error:
            return False

    return Server(f"pgbouncer to {DATABASE}", command, folder / "pgbouncer.log", postgres_url(port), port, is_ready)
