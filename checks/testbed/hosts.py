"""Several hosts on one machine, each with its own network, addresses and host name. A test can pull their cables.

A host is a network namespace and a UTS namespace of Linux (namespaces(7)). They have no names in the file system: an
open file of this process and the processes inside keep them. The kernel removes them and all their links with the
last of these, also after a kill. The switch that connects the hosts has its own namespace. So the machine's own
network does not change, and no host reaches anything outside.
"""

import contextlib
import ctypes
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_CLONE_NEWUTS = 0x04000000  # <linux/sched.h>
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# By the networks' names: address blocks for documentation (RFC 5737), which no real network uses.
_NETWORKS = {"front": "192.0.2", "back": "198.51.100"}


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Namespaces:
    """A network and a host name, as open namespace files."""

    net: int
    uts: int

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is inside during the block, with the threads, programs and connections that it starts.

        Existing connections, programs and threads do not move, neither now nor afterwards.
        """
        before = _of_this_thread()
        self._enter()
        try:
            yield
        finally:
            before._enter()
            before.close()

    def _enter(self) -> None:
        _checked(_libc.setns(self.net, _CLONE_NEWNET))
        _checked(_libc.setns(self.uts, _CLONE_NEWUTS))

    def close(self) -> None:
        os.close(self.net)
        os.close(self.uts)

    @property
    def net_path(self) -> str:
        """The network's file, for `ip`."""
        return f"/proc/{os.getpid()}/fd/{self.net}"


def _of_this_thread() -> Namespaces:
    return Namespaces(*(os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts")))


def _new(host_name: str) -> Namespaces:
    """New namespaces, without any link. Raises OSError if that is not allowed."""
    made: list[Namespaces] = []
    errors: list[OSError] = []

    def make() -> None:  # in a thread of its own, which then ends: this one does not move
        try:
            _checked(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWUTS))
            name = host_name.encode()
            _checked(_libc.sethostname(name, len(name)))
            made.append(_of_this_thread())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


@dataclass
class Host:
    """One host: programs that start `inside` run on it."""

    host_name: str
    namespaces: Namespaces
    switch: Namespaces
    addresses: dict[str, str] = field(default_factory=dict)  # by network

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """As Namespaces.inside."""
        return self.namespaces.inside()

    def cut(self, network: str) -> None:
        """Pull the cable to a network: packets are lost without an answer, and connections stay open."""
        self._set(network, "down")

    def heal(self, network: str) -> None:
        self._set(network, "up")

    def _set(self, network: str, state: str) -> None:
        _ip(self.switch, "link", "set", self.port(network), state)

    def port(self, network: str) -> str:
        """The switch's port. An interface name has at most 15 characters."""
        return f"{network}{self.addresses[network].rpartition('.')[2]}"


def _ip(where: Namespaces, *words: str) -> str:
    """Run `ip` in a namespace. Raises OSError with its message."""
    with where.inside():
        said = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {said.stderr.strip()}")
    return said.stdout


@contextlib.contextmanager
def connected_hosts(networks: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, Host]]:
    """Hosts by a short name, each connected to its networks (`front`, `back`), until the block ends.

    The caller must end its programs inside before that. Raises OSError if hosts are not allowed here.
    """
    with contextlib.ExitStack() as stack:

        def new(name: str) -> Namespaces:
            made = _new(f"{name}-{os.getpid()}-{secrets.token_hex(3)}")
            stack.callback(made.close)
            return made

        switch = new("switch")
        for network in _NETWORKS:
            _ip(switch, "link", "add", network, "type", "bridge", "forward_delay", "0")
            _ip(switch, "link", "set", network, "up")
        hosts = {}
        for number, (name, connections) in enumerate(networks.items(), 1):
            namespaces = new(name)
            _ip(namespaces, "link", "set", "lo", "up")
            with namespaces.inside():
                host_name = os.uname().nodename
            host = hosts[name] = Host(host_name, namespaces, switch)
            for network in connections:
                host.addresses[network] = f"{_NETWORKS[network]}.{number}"
                _connect(host, network)
        yield hosts


def _connect(host: Host, network: str) -> None:
    port = host.port(network)
    other_end = ("peer", "name", network, "netns", host.namespaces.net_path)
    _ip(host.switch, "link", "add", "name", port, "type", "veth", *other_end)
    _ip(host.switch, "link", "set", port, "master", network, "up")
    _ip(host.namespaces, "address", "add", f"{host.addresses[network]}/24", "dev", network)
    _ip(host.namespaces, "link", "set", network, "up")


def links_here() -> str:
    """The names of the machine's own network interfaces, one a line."""
    said = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line.split(maxsplit=1)[0] for line in said.splitlines())


def hosts_problem() -> str | None:
    """Why hosts can't be made here; None if they can."""
    try:
        with connected_hosts({"a": ("back",)}):
            return None
    except (OSError, AttributeError) as error:  # not root, no iproute2, no such kernel module, or not Linux
        return f"network namespaces can't be made here: {error}"
