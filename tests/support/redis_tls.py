"""Redis servers of the tests that only speak TLS."""

import dataclasses
import shutil
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stack.servers import LOOPBACK, Server, free_port, redis_server
from support.certificates import Authority

USER, PASSWORD = "sluice", "p@:%/#x"
URL_PASSWORD = "p%40%3A%25%2F%23x"


def tls_program() -> str | None:
    """A redis-server with TLS; None if there is none. The one in the wheel has none.

    Debian's redis-tools has the server too, under the name of one of its tools. It finds out by its name which program
    it is.
    """
    for name in ("redis-server", "redis-check-rdb"):
        path = shutil.which(name)
        if path and b"libssl.so" in Path(path).resolve().read_bytes():
            return path
    return None


def redis_tls_server(home: Path, authority: Authority, *, is_log: bool, wants_certificate: bool = False) -> Server:
    """A server with a certificate for 127.0.0.1, and a user with a password. Not started."""
    program = tls_program()
    assert program is not None
    port = free_port()
    plain = redis_server(home, port, is_log=is_log, maxmemory="64mb", durable=False)
    named = home / "redis-server"
    if not named.exists():
        named.symlink_to(program)
    made = authority.issue(f"redis-{port}")
    command = [
        str(named),
        *("--port", "0", "--tls-port", str(port)),
        *("--tls-cert-file", str(made.certificate), "--tls-key-file", str(made.key)),
        *("--tls-ca-cert-file", str(authority.ca), "--tls-auth-clients", "yes" if wants_certificate else "no"),
        *("--user", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all", "--user", "default", "off"),
        *plain.command[plain.command.index("--bind") :],
    ]
    url = f"rediss://{USER}:{URL_PASSWORD}@{LOOPBACK}:{port}/0"

    def is_ready() -> bool:
        try:
            with redis.Redis.from_url(
                url, ssl_cert_reqs="none", ssl_check_hostname=False, ssl_certfile=str(made.certificate),
                ssl_keyfile=str(made.key), socket_timeout=1, retry=Retry(NoBackoff(), 0),
            ) as client:  # fmt: skip
                return bool(client.ping())
        except redis.RedisError:
            return False

    return dataclasses.replace(plain, command=command, url=url, is_ready=is_ready)
