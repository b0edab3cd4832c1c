"""The systems on which runbooks are acted out. Each has the parts that its conditions need."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from checks.runbooks.act import SECONDS_MAX
from checks.testbed.client_certificates import Clients
from checks.testbed.kafka_cluster import kafka_brokers
from checks.testbed.redis_pair import RedisPair
from stack.config import StackConfig, environ_of_its_own
from stack.servers import KAFKA_LIBS, free_port
from stack.system import System
from tasks import signing

# Lower limits, so that all scenarios take only minutes.
_SETTINGS: Final = {
    "REFUSED_SECONDS": "10",
    "LAG_DEGRADED": "500",
    "LAG_CRITICAL": "2000",
    "NO_PROGRESS_SECONDS_MAX": "10",
    "POISON_RUN_RECORDS_MAX": "100",
    "RETENTION_DAYS": "30",
    "RETENTION_SECONDS": "5",
    "PROMETHEUS_SECONDS": "1",
}
# Kafka's commands: the jars have them, but not their scripts.
_KAFKA_COMMANDS: Final = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-configs.sh": "kafka.admin.ConfigCommand",
}


class Kind(StrEnum):
    """The kind of a system, by its parts beside its own programs."""

    PLAIN = "plain"
    GUARDED = "guarded"  # a password for operators, and signed messages
    CERTIFICATES = "certificates"  # its clients have certificates
    REPLICATED = "replicated"  # the event log is a Redis with one replica
    KAFKA = "kafka"  # the event log is on two Kafka brokers, with one copy of each partition


@dataclass(frozen=True)
class SmallDisk:
    """A folder in WATCHED_PATHS on which a scenario mounts a small disk."""

    folder: Path


@dataclass(frozen=True)
class ClientFiles:
    """The authority for clients' certificates, and the file of INGEST_TLS_CLIENT_CA."""

    authority: Clients
    file: Path

    def publish(self, revocations: bytes) -> None:
        """Put the authority and this list of revoked certificates into the file, in one step."""
        new = self.file.with_suffix(".new")
        new.write_bytes(self.authority.ca.read_bytes() + revocations)
        new.replace(self.file)


@contextlib.contextmanager
def running(kind: Kind, folder: Path) -> Iterator[tuple[System, dict[str, str], Sequence[object], dict[str, str]]]:
    """Start a system in a folder. Yields it, its URLs, its parts, and more variables for an operator's shell.

    Raises ServerError.
    """
    with contextlib.ExitStack() as stack:
        parts, settings, shell = stack.enter_context(_PARTS[kind](folder))
        given = {**_SETTINGS, "SLUICE_HOME": str(folder / "system"), **settings}
        stack.enter_context(environ_of_its_own(**given))
        config = StackConfig.from_environ("kafka" if kind is Kind.KAFKA else "redis")
        system = System(config, ready_seconds_max=SECONDS_MAX)
        urls = system.start(threading.Event())
        stack.callback(system.stop)
        yield system, urls, parts, shell


_Parts = tuple[Sequence[object], dict[str, str], dict[str, str]]


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[_Parts]:
    disk = SmallDisk(folder / "disk")
    disk.folder.mkdir()
    yield [disk], {"WATCHED_PATHS": str(disk.folder)}, {}


@contextlib.contextmanager
def _guarded(folder: Path) -> Iterator[_Parts]:
    key, certificate = signing.create("workers", folder / "signing", days=100)
    settings = {
        "OPERATOR_PASSWORD": "the-right-password",
        "SIGNING_KEY_FILE": str(key),
        "SIGNING_CERT_FILE": str(certificate),
        "SIGNING_CERT_FOLDER": str(certificate.parent),
    }
    yield [], settings, {}


@contextlib.contextmanager
def _certificates(folder: Path) -> Iterator[_Parts]:
    own, clients = Clients(folder, "own"), ClientFiles(Clients(folder), folder / "clients.pem")
    clients.publish(clients.authority.revocations())
    settings = {
        "INGEST_TLS_CERT": str(own.server()),
        "INGEST_TLS_CLIENT": "required",
        "INGEST_TLS_CLIENT_CA": str(clients.file),
        "OPERATOR_PORT": str(free_port()),
    }
    yield [clients], settings, {"CURL_CA_BUNDLE": str(own.ca), "INGEST_TLS_CLIENT_CA": str(clients.file)}


@contextlib.contextmanager
def _replicated(folder: Path) -> Iterator[_Parts]:
    pair = RedisPair(folder, maxmemory="64mb").start()
    try:
        yield [pair], {"EVENT_LOG_URL": pair.master.url, "LOG_REPLICAS_MIN": "1"}, {}
    finally:
        pair.stop()


@contextlib.contextmanager
def _kafka(folder: Path) -> Iterator[_Parts]:
    with kafka_brokers(folder, 2) as cluster:
        commands = folder / "bin"
        commands.mkdir()
        for name, program in _KAFKA_COMMANDS.items():
            (commands / name).write_text(f'#!/bin/sh\nexec java -cp "{KAFKA_LIBS}/*" {program} "$@" 2>/dev/null\n')
            (commands / name).chmod(0o755)
        settings = {"EVENT_LOG_URL": cluster.url, "LOG_PARTITIONS": "4"}
        yield [cluster], settings, {"PATH": f"{commands}:{os.environ['PATH']}"}


_PARTS: Final = {
    Kind.PLAIN: _plain,
    Kind.GUARDED: _guarded,
    Kind.CERTIFICATES: _certificates,
    Kind.REPLICATED: _replicated,
    Kind.KAFKA: _kafka,
}
