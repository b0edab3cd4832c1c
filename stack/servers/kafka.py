"""A private Kafka: Java, Kafka's jars, and one broker."""

import contextlib
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from pipeline.running import local_folder
from stack.servers.errors import ServerError
from stack.servers.ports import LOOPBACK
from stack.servers.programs import ROOT
from stack.servers.server import Server

KAFKA_VERSION: Final = "4.0.0"
KAFKA_LIBS: Final = local_folder(os.environ) / f"kafka-{KAFKA_VERSION}"
CLUSTER_ID: Final = "sluiceSluiceSluiceSluA"
# Java, without the options that another program's variables would add to it: they even override the command line.
_JAVA: Final = ("env", "-u", "JAVA_TOOL_OPTIONS", "-u", "_JAVA_OPTIONS", "java")
_KAFKA_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=4
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.hours=-1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


def kafka_url(port: int) -> str:
    """The URL of a private Kafka on this port."""
    return f"kafka://{LOOPBACK}:{port}"


def kafka_is_possible() -> str | None:
    """None if Kafka can run here; otherwise the reason why it can't."""
    if shutil.which("java") is None:
        return "Kafka needs Java 17, and there is no java on the PATH"
    said = subprocess.run([*_JAVA, "-version"], capture_output=True, text=True, check=False).stderr
    version = said.partition('version "')[2].partition(".")[0].strip('"')
    if not version.isdigit() or int(version) < 17:
        return f"Kafka needs Java 17, and `java -version` says {said.splitlines()[0] if said else 'nothing'}"
    if not KAFKA_LIBS.is_dir() and shutil.which("mvn") is None:
        return "Kafka is resolved by Maven, and there is no mvn on the PATH"
    return None


def resolve_kafka() -> Path:
    """Folder with Kafka's jars; Maven downloads them the first time. Raises ServerError."""
    reason = kafka_is_possible()
    if reason is not None:
        raise ServerError(reason)
    KAFKA_LIBS.parent.mkdir(parents=True, exist_ok=True)
    with KAFKA_LIBS.with_name("kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may download them: then this one waits
        if not KAFKA_LIBS.is_dir():
            _download_kafka()
    return KAFKA_LIBS


def _download_kafka() -> None:
    partial = KAFKA_LIBS.with_name(f"{KAFKA_LIBS.name}.new")
    shutil.rmtree(partial, ignore_errors=True)  # of a download that was killed
    partial.mkdir()
    said = subprocess.run(
        [
            *("mvn", "-q", "-B", "-f", str(ROOT / "stack" / "kafka" / "pom.xml"), "dependency:copy-dependencies"),
            *(f"-Dkafka.version={KAFKA_VERSION}", f"-DoutputDirectory={partial}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode != 0:
        shutil.rmtree(partial)
        raise ServerError(f"Maven could not resolve Kafka {KAFKA_VERSION}: {said.stdout.strip()[-800:]}")
    partial.rename(KAFKA_LIBS)


def kafka_server(home: Path, port: int, controller_port: int, *, host: str = LOOPBACK) -> Server:
    """The real Apache Kafka as one process (KRaft: broker and controller). Raises ServerError."""
    libs = resolve_kafka()
    base = home / "kafka"
    data = base / "data"
    base.mkdir(parents=True, exist_ok=True)
    properties = base / "server.properties"
    properties.write_text(_KAFKA_PROPERTIES.format(host=host, port=port, controller_port=controller_port, data=data))
    logging = base / "log4j2.properties"
    logging.write_text((ROOT / "stack" / "kafka" / "log4j2.properties").read_text())
    java = [*_JAVA, "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={logging}"]
    java += ["-cp", f"{libs}/*"]
    if not (data / "meta.properties").exists():
        formatted = subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties)],
            capture_output=True,
            text=True,
            check=False,
        )
        if formatted.returncode != 0:
            raise ServerError(f"Kafka's storage could not be formatted: {formatted.stderr.strip()[-500:]}")
    command = [*java, "kafka.Kafka", str(properties)]

    def is_ready() -> bool:
        from kafka import KafkaAdminClient  # noqa: PLC0415 - slow to import, and most runs need no Kafka
        from kafka.errors import KafkaError  # noqa: PLC0415

        with contextlib.suppress(KafkaError, OSError, ValueError):
            admin = KafkaAdminClient(
                bootstrap_servers=f"{LOOPBACK}:{port}", api_version=(2, 6, 0), request_timeout_ms=3000
            )
            try:
                return bool(admin.describe_cluster()["brokers"])
            finally:
                admin.close()
        return False

    return Server("kafka", command, home / "kafka.log", kafka_url(port), port, is_ready)
