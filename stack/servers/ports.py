"""Ports on which servers listen: free ones for tests, and why one can't be used."""

import errno
import random
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = range(15_000, 32_001)  # below the range of clients' ports: a restarted server must find its port free
_own_ports: list[int] = [*_PORTS]
_given_ports: set[int] = set()  # by this process; their servers may not listen yet


def keep_to_own_ports(number: int, processes: int) -> None:
    """Let `free_port` give another port than other processes do, of which each has a number from 0 on.

    A port is free until its server listens, and again while that is restarted: then another process could give it too.
    """
    _own_ports[:] = _PORTS[number::processes]


def free_port() -> int:
    """An unused TCP port that this process has not given before."""
    while True:
        if len(_given_ports) > len(_own_ports) // 2:
            _given_ports.clear()
        port = random.choice(_own_ports)  # noqa: S311 - not a secret
        if port not in _given_ports and not port_is_taken(LOOPBACK, port):
            _given_ports.add(port)
            return port


def port_problem(host: str, port: int) -> str | None:
    """The reason why no program can listen on the port now; None if one can."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return "is taken" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
    return None


def port_is_taken(host: str, port: int) -> bool:
    """Whether no other program can listen on the port."""
    return port_problem(host, port) is not None
