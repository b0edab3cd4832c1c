"""What `run.sh` is told: folders, ports and which servers are somebody else's. The only reader of these variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stack.servers import DATABASE, LOOPBACK, ROOT, ServerError

_PORTS: Final = {
    "INGEST_PORT": 8080,
    "INGEST_METRICS_PORT": 9101,  # of the first ingest process where there are several; the others' follow
    "FLOWER_PORT": 5555,
    "POSTGRES_PORT": 5433,
    "REDIS_PORT": 6381,  # queues, bucket and control state
    "LOG_REDIS_PORT": 6382,  # the event log
    "KAFKA_PORT": 9093,
    "KAFKA_CONTROLLER_PORT": 9094,
}


@dataclass(frozen=True)
class StackConfig:
    """How to run one system on this machine."""

    home: Path  # data, logs, socket and process ids
    log: str  # redis or kafka
    host: str  # that ingest and Flower listen on; private servers always keep to the loopback address
    ingest_processes: int
    ports: Mapping[str, int]
    given: Mapping[str, str]  # DATABASE_URL, REDIS_URL, EVENT_LOG_URL where servers of somebody else are used

    @classmethod
    def from_environ(cls, log: str | None, environ: Mapping[str, str] | None = None) -> "StackConfig":
        """Read the environment; `log` is the command line's choice. Raises ServerError with what is wrong."""
        source = os.environ if environ is None else environ
        home = Path(source.get("SLUICE_HOME") or ROOT / ".local" / "system").expanduser().resolve()
        ports = {name: _number(source, name, default, 65535) for name, default in _PORTS.items()}
        names = ("DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL")
        given = {name: source[name] for name in names if source.get(name) and source[name] not in _own_urls(ports)}
        bootstrap = source.get("KAFKA_BOOTSTRAP_SERVERS")
        if log is None:
            remembered = home / "log"
            log = remembered.read_text().strip() if remembered.exists() else "redis"
            if given.get("EVENT_LOG_URL", "").startswith("kafka://") or bootstrap:
                log = "kafka"
        if log == "kafka" and bootstrap and "EVENT_LOG_URL" not in given:
            given["EVENT_LOG_URL"] = f"kafka://{bootstrap}"
        url = given.get("EVENT_LOG_URL")
        if url is not None and url.startswith("kafka") != (log == "kafka"):
            raise ServerError(f"--log {log} and EVENT_LOG_URL={url} contradict each other: leave one of them out")
        return cls(
            home=home,
            log=log,
            host=source.get("INGEST_HOST") or LOOPBACK,
            ingest_processes=_number(source, "INGEST_PROCESSES", 1, 64),
            ports=ports,
            given=given,
        )

    @property
    def ports_used(self) -> dict[str, int]:
        """The ports that this system listens on, by setting."""
        names = ["INGEST_PORT", "FLOWER_PORT"]
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
        """A port for each ingest process' own metrics; none where there is one process, whose /metrics is enough."""
        if self.ingest_processes == 1:
            return []
        return [self.ports["INGEST_METRICS_PORT"] + number for number in range(self.ingest_processes)]


def _own_urls(ports: Mapping[str, int]) -> set[str]:
    """URLs of the private servers: a shell that was given `./run.sh env` names them as if they were others'."""
    return {
        f"postgresql://{DATABASE}@{LOOPBACK}:{ports['POSTGRES_PORT']}/{DATABASE}",
        f"redis://{LOOPBACK}:{ports['REDIS_PORT']}/0",
        f"redis://{LOOPBACK}:{ports['LOG_REDIS_PORT']}/0",
        f"kafka://{LOOPBACK}:{ports['KAFKA_PORT']}",
    }


def _number(source: Mapping[str, str], name: str, default: int, high: int) -> int:
    text = source.get(name) or str(default)
    if not text.isdigit() or not 1 <= int(text) <= high:
        raise ServerError(f"{name}={text!r} is not a number from 1 to {high}")
    return int(text)
