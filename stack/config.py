"""The configuration of `run.sh`: folders, ports and the user's own servers. The only reader of these variables."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.running import SYSTEM_VARIABLE, home_of, how_to
from pipeline.secrets import know_url
from pipeline.settings import Settings, public_problem
from stack import surroundings
from stack.prometheus import SCRAPE_SECONDS
from stack.servers import (
    LOOPBACK,
    ROOT,
    ServerError,
    free_port,
    kafka_url,
    port_is_taken,
    postgres_url,
    redis_url,
)

_PORTS: Final = {
    "INGEST_PORT": 8080,
    "FLOWER_PORT": 5555,
    "CONTROL_METRICS_PORT": 9111,
    "BATCHES_METRICS_PORT": 9112,
    "PROMETHEUS_PORT": 9090,
    "POSTGRES_PORT": 5433,
    "REDIS_PORT": 6381,  # queues, bucket and control state
    "LOG_REDIS_PORT": 6382,  # the event log
    "KAFKA_PORT": 9093,
    "KAFKA_CONTROLLER_PORT": 9094,
    # Of the first ingest process if there are several; the others' ports follow. With PORT_BASE it is the last one.
    "INGEST_METRICS_PORT": 9101,
}
_PORT_BASE: Final = "PORT_BASE"
_INGESTS_MAX: Final = 64
_BASE_MAX: Final = 65535 - len(_PORTS) - _INGESTS_MAX
_DOCS_PORT: Final = 8000  # of `sluice docs`, which is no part of the system
_DOCS_AFTER_BASE: Final = len(_PORTS) - 1 + _INGESTS_MAX  # the first port that no ingest process can have
_SUGGESTED_BASES: Final = range(18100, 32000, 100)  # below the ports of clients


def free_base() -> int:
    """A PORT_BASE whose ports are free now, to suggest it."""
    count = len(_PORTS) + 1
    for base in _SUGGESTED_BASES:
        if not any(port_is_taken(LOOPBACK, port) for port in range(base, base + count)):
            return base
    return _SUGGESTED_BASES[0]


def free_ports() -> dict[str, str]:
    """Unused ports, as variables, for a system with one ingest process beside others."""
    return {name: str(free_port()) for name in _PORTS if name != "INGEST_METRICS_PORT"}


_URLS: Final = ("DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL")
_URL_FILES: Final = tuple(f"{name}_FILE" for name in _URLS)
_BOOTSTRAP: Final = "KAFKA_BOOTSTRAP_SERVERS"
_PROMETHEUS_URL: Final = "PROMETHEUS_URL"


@contextlib.contextmanager
def environ_of_its_own(**variables: str) -> Iterator[dict[str, str]]:
    """Set this process' environment for a separate system: free ports, and `variables`. Yields both together.

    Removes the addresses of servers: `eval "$(./run.sh env)"` has set the addresses of a running system, and a
    measurement must not use them. Removes the settings with which the shell starts a public system, too. Afterwards it
    restores the old environment.
    """
    before, ours = dict(os.environ), free_ports() | variables
    for name in (*_URLS, *_URL_FILES, *_DOORS, _BOOTSTRAP, _PORT_BASE, _PROMETHEUS_URL, SYSTEM_VARIABLE):
        os.environ.pop(name, None)
    surroundings.clear(os.environ)
    os.environ.update(ours)
    try:
        yield ours
    finally:
        os.environ.clear()
        os.environ.update(before)


def environ_of(settings: Settings) -> dict[str, str]:
    """The settings that are not the default, as environment variables. An older version has its own defaults."""
    defaults = vars(Settings())
    return {name.upper(): str(value) for name, value in vars(settings).items() if value != defaults[name]}


def environ_with(settings: Settings) -> dict[str, str]:
    """This process' environment with exactly these settings: for a process of Sluice that it starts."""
    names = {name.upper() for name in vars(settings)}
    names |= {f"{name}_FILE" for name in names}
    return {name: value for name, value in os.environ.items() if name not in names} | environ_of(settings)


_LOGS: Final = ("redis", "kafka")
_KAFKA: Final = ("kafka:", "kafka+ssl:")
# Who may send and look, and from where: a measurement's own system has one port on the loopback address, without TLS.
_DOORS: Final = (
    "INGEST_HOST", "INGEST_KEYS", "INGEST_OPEN", "INGEST_TLS_CERT", "INGEST_TLS_KEY", "OPERATOR_PORT", "OPERATOR_HOST",
    "OPERATOR_PASSWORD", "OPERATOR_PASSWORD_FILE", "OPERATOR_OPEN", "METRICS_HOST", "FLOWER_HOST",
)  # fmt: skip
_YES: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True)
class StackConfig:
    """How to run one system on this machine."""

    home: Path  # data, logs, socket and process ids
    log: str  # redis or kafka
    host: str  # address of ingest; private servers always use the loopback address
    operator_host: str  # address of OPERATOR_PORT, if `ports` has one
    has_operator_password: bool
    has_ingest_keys: bool  # clients need one
    metrics_host: str  # address of the ports for metrics
    flower_host: str  # Flower shows tasks and workers to every client that reaches it
    ingest_processes: int
    ports: Mapping[str, int]
    given: Mapping[str, str]  # DATABASE_URL, REDIS_URL, EVENT_LOG_URL of servers that the user provided
    prometheus: str | None = None  # path of the program, if it runs
    prometheus_seconds: int = SCRAPE_SECONDS  # between two scrapes

    @classmethod
    def from_environ(cls, log: str | None, environ: Mapping[str, str] | None = None) -> "StackConfig":
        """Read the environment; `log` is the command line's choice. Raises ServerError with the reason."""
        source = os.environ if environ is None else environ
        for name in _URLS:
            know_url(source.get(name, ""))
        home = home_of(source)
        for folder in (home, ROOT):
            if re.search(r"%|\s[;#]|\n", str(folder)):  # special characters in supervisor's configuration
                raise ServerError(f"supervisor can't work in a folder with %, or ; or # after a space: {str(folder)!r}")
        ports = {name: _number(source, name, default, 65535) for name, default in _default_ports(source).items()}
        in_files = [name for name in _URL_FILES if source.get(name)]
        if in_files:
            raise ServerError(
                f"{' and '.join(in_files)} can't be used here: {how_to('up')} takes the address of a server as it "
                f"is, in {', '.join(name.removesuffix('_FILE') for name in in_files)}"
            )
        own = _own_urls(home, ports)
        given = {name: source[name] for name in _URLS if source.get(name) and source[name] not in own}
        _refuse_those_of_another(home, source, given)
        bootstrap = source.get("KAFKA_BOOTSTRAP_SERVERS")
        if log is None:
            log = _log_without_a_choice(home, given.get("EVENT_LOG_URL"), bootstrap)
        if log == "kafka" and bootstrap and "EVENT_LOG_URL" not in given:
            given["EVENT_LOG_URL"] = f"kafka://{bootstrap}"
        url = given.get("EVENT_LOG_URL")
        if url is not None and url.startswith(_KAFKA) != (log == "kafka"):
            raise ServerError(f"--log {log} and EVENT_LOG_URL={url} contradict each other: leave one of them out")
        host, operator_host = source.get("INGEST_HOST") or LOOPBACK, source.get("OPERATOR_HOST") or LOOPBACK
        if source.get("OPERATOR_PORT", "").strip() not in ("", "0"):
            ports["OPERATOR_PORT"] = _number(source, "OPERATOR_PORT", 0, 65535)
        _refuse_open_hosts(host, operator_host if "OPERATOR_PORT" in ports else None, source)
        return cls(
            home=home,
            log=log,
            host=host,
            operator_host=operator_host,
            has_operator_password=_has_operator_password(source),
            has_ingest_keys=_is_set(source, "INGEST_KEYS"),
            metrics_host=source.get("METRICS_HOST") or LOOPBACK,
            flower_host=source.get("FLOWER_HOST") or LOOPBACK,
            ingest_processes=_number(source, "INGEST_PROCESSES", 1, _INGESTS_MAX),
            ports=ports,
            given=given,
            prometheus=_prometheus(source),
            prometheus_seconds=_number(source, "PROMETHEUS_SECONDS", SCRAPE_SECONDS, 60),
        )

    @property
    def ports_used(self) -> dict[str, int]:
        """The ports that this system listens on, by setting."""
        names = ["INGEST_PORT", "FLOWER_PORT", "CONTROL_METRICS_PORT", "BATCHES_METRICS_PORT"]
        if "OPERATOR_PORT" in self.ports:
            names.append("OPERATOR_PORT")
        if self.prometheus is not None:
            names.append("PROMETHEUS_PORT")
        if "DATABASE_URL" not in self.given:
            names.append("POSTGRES_PORT")
        if "REDIS_URL" not in self.given:
            names.append("REDIS_PORT")
        if "EVENT_LOG_URL" not in self.given:
            names += ["KAFKA_PORT", "KAFKA_CONTROLLER_PORT"] if self.log == "kafka" else ["LOG_REDIS_PORT"]
        used = {name: self.ports[name] for name in names}
        for number, port in enumerate(self.metrics_ports):
            used[f"INGEST_METRICS_PORT{f' + {number}' if number else ''}"] = port
        return used

    @property
    def metrics_ports(self) -> list[int]:
        """A port for each ingest process' own metrics.

        None if there is one process whose /metrics Prometheus can read: on INGEST_PORT, without a password.
        """
        if self.ingest_processes == 1 and "OPERATOR_PORT" not in self.ports and not self.has_operator_password:
            return []
        return [self.ports["INGEST_METRICS_PORT"] + number for number in range(self.ingest_processes)]


def _default_ports(source: Mapping[str, str]) -> Mapping[str, int]:
    """The ports of those that are not set: PORT_BASE and the ones after it, if it is set."""
    if not source.get(_PORT_BASE):
        return _PORTS
    base = _number(source, _PORT_BASE, 0, _BASE_MAX)
    return {name: base + number for number, name in enumerate(_PORTS)}


def docs_port(source: Mapping[str, str]) -> int:
    """The port of `sluice docs`. Raises ServerError if DOCS_PORT or PORT_BASE is not a port."""
    default = _default_ports(source)["INGEST_PORT"] + _DOCS_AFTER_BASE if source.get(_PORT_BASE) else _DOCS_PORT
    return _number(source, "DOCS_PORT", default, 65535)


def _refuse_those_of_another(home: Path, source: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Raise ServerError if the shell has the addresses of another system: both would use one event log."""
    other = source.get(SYSTEM_VARIABLE, "")
    if given and other and Path(other) != home:
        raise ServerError(
            f"{', '.join(given)} in this shell {'is' if len(given) == 1 else 'are'} of the system in {other} (from its "
            f"`{how_to('env')}`), and this one is in {home}: run `unset {' '.join([*given, SYSTEM_VARIABLE])}`, or use "
            "another shell"
        )


def _refuse_open_hosts(host: str, operator_host: str | None, source: Mapping[str, str]) -> None:
    """Raise ServerError if strangers could send events or look. Ingest refuses that too, but only in its log."""
    problem = public_problem(
        host,
        operator_host,
        takes_all=not (
            _is_set(source, "INGEST_KEYS", "INGEST_OPEN") or source.get("INGEST_TLS_CLIENT", "").strip() == "required"
        ),
        shows_all=not (_has_operator_password(source) or _is_set(source, "OPERATOR_OPEN")),
    )
    if problem is not None:
        raise ServerError(problem)


def _is_set(source: Mapping[str, str], *names: str) -> bool:
    """Whether one of these settings is yes."""
    return any(source.get(name, "").strip().lower() in _YES for name in names)


def _has_operator_password(source: Mapping[str, str]) -> bool:
    return any(source.get(name, "").strip() for name in ("OPERATOR_PASSWORD", "OPERATOR_PASSWORD_FILE"))


def _prometheus(source: Mapping[str, str]) -> str | None:
    """The Prometheus of this machine; None if there is none, or if PROMETHEUS=no."""
    wanted = source.get("PROMETHEUS") or "auto"
    if wanted not in ("auto", "yes", "no"):
        raise ServerError(f"PROMETHEUS={wanted!r} is none of auto, yes, no")
    program = None if wanted == "no" else shutil.which("prometheus", path=source.get("PATH", ""))
    if wanted == "yes" and program is None:
        raise ServerError("PROMETHEUS=yes, and there is no prometheus on the PATH (Debian: prometheus)")
    return program


def _log_without_a_choice(home: Path, url: str | None, bootstrap: str | None) -> str:
    """The event log if the command line names none: from the URLs, as last time, or Redis Streams."""
    if url is not None:
        return "kafka" if url.startswith(_KAFKA) else "redis"
    if bootstrap:
        return "kafka"
    remembered = home / "log"
    log = remembered.read_text().strip() if remembered.is_file() else ""
    return log if log in _LOGS else "redis"


def _own_urls(home: Path, ports: Mapping[str, int]) -> set[str]:
    """URLs of this system's private servers.

    A user who has loaded `./run.sh env` into the shell and starts again there passes our own servers' addresses. These
    servers do not respond until we start them.
    """
    own = {
        postgres_url(ports["POSTGRES_PORT"]),
        redis_url(ports["REDIS_PORT"]),
        redis_url(ports["LOG_REDIS_PORT"]),
        kafka_url(ports["KAFKA_PORT"]),
    }
    state = home / "running.json"
    if state.is_file():
        own.update(json.loads(state.read_text()).get("own", []))
    return own


def _number(source: Mapping[str, str], name: str, default: int, high: int) -> int:
    text = source.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= high:
        raise ServerError(f"{name}={text!r} is not a number from 1 to {high}")
    return int(text)
