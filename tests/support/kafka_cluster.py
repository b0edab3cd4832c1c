"""Two brokers of the real Kafka: one that is the controller too, and one that a test may kill."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stack.servers import LOOPBACK, Server, free_port, kafka_server, kafka_url

_CLUSTER_ID = "sluiceSluiceSluiceSluA"  # of stack/servers.py
_CHANGES = {
    "offsets.topic.replication.factor=1": "offsets.topic.replication.factor=2",  # the commits outlive the second broker
    "offsets.topic.num.partitions=1": "offsets.topic.num.partitions=4",  # it leads some of them,
    "broker.session.timeout.ms=3000": "broker.session.timeout.ms=5000\n"  # and on a busy machine leads them again
    "leader.imbalance.check.interval.seconds=1\nleader.imbalance.per.broker.percentage=0",
}


@dataclass
class Cluster:
    first: Server
    second: Server
    second_data: Path

    @property
    def url(self) -> str:
        return f"{kafka_url(self.second.port)},{LOOPBACK}:{self.first.port}"


@contextlib.contextmanager
def two_brokers(home: Path) -> Iterator[Cluster]:
    """Both, started at the same time; broker 1 answers already, broker 2 will soon."""
    port, controller_port = free_port(), free_port()
    first = kafka_server(home, port, controller_port)
    first.command = ["-Xmx256m" if word.startswith("-Xmx") else word for word in first.command]
    first.command.insert(1, "-XX:TieredStopAtLevel=1")  # it does not live long enough for better code
    properties = home / "kafka" / "server.properties"
    text = properties.read_text()
    for before, after in _CHANGES.items():
        assert before in text
        text = text.replace(before, after)
    properties.write_text(text)
    second, data = _second(home / "second", first, text)
    with contextlib.ExitStack() as stack:
        for server in (first, second):
            stack.callback(server.stop, seconds_max=5.0)
        second.start()
        first.start()
        yield Cluster(first, second, data)


def _second(home: Path, first: Server, text: str) -> tuple[Server, Path]:
    """Broker 2, which is no controller. It is ready when it is started: who needs it waits for it."""
    port, data = free_port(), home / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text(f"version=1\ncluster.id={_CLUSTER_ID}\nnode.id=2\n")  # a JVM less to start
    own = ("process.roles", "node.id", "log.dirs", "listeners", "advertised.listeners")
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in own]
    lines += ["process.roles=broker", "node.id=2", f"log.dirs={data}"]
    lines += [f"{name}=PLAINTEXT://{LOOPBACK}:{port}" for name in ("listeners", "advertised.listeners")]
    properties = home / "server.properties"
    properties.write_text("\n".join(lines) + "\n")
    command = [*first.command[:-1], str(properties)]
    return replace(
        first, name="kafka 2", command=command, log_path=home / "kafka.log", url=kafka_url(port), port=port,
        is_ready=lambda: True,
    ), data  # fmt: skip
