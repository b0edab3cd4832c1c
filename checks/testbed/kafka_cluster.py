"""Real Kafka brokers: the first is also the controller, and a test may kill the others."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stack.servers import LOOPBACK, Server, free_port, kafka_server, kafka_url
from stack.servers.kafka import CLUSTER_ID

START_SECONDS_MAX = 240.0  # several JVMs start at once, perhaps on a busy machine
_CHANGES = {
    "offsets.topic.replication.factor=1": "offsets.topic.replication.factor=2",  # the commits outlive the second broker
    "offsets.topic.num.partitions=1": "offsets.topic.num.partitions=4",  # it leads some of them,
    "broker.session.timeout.ms=3000": "broker.session.timeout.ms=5000\n"  # and on a busy machine leads them again
    "leader.imbalance.check.interval.seconds=1\nleader.imbalance.per.broker.percentage=0",
}


@dataclass
class Cluster:
    """Brokers that start at the same time; broker 1 answers after `start`, the others soon after."""

    first: Server
    others: list[Server]  # broker 2 and on
    second_data: Path

    @property
    def brokers(self) -> list[Server]:
        return [self.first, *self.others]

    def start(self) -> "Cluster":
        """Raises ServerError."""
        for server in self.others:
            server.start()
        self.first.start(seconds_max=START_SECONDS_MAX)
        return self

    def stop(self) -> None:
        for server in self.brokers[::-1]:
            server.stop(seconds_max=5.0)

    @property
    def second(self) -> Server:
        return self.others[0]

    @property
    def url(self) -> str:
        return f"{kafka_url(self.second.port)},{LOOPBACK}:{self.first.port}"


@contextlib.contextmanager
def kafka_brokers(home: Path, count: int) -> Iterator[Cluster]:
    """A running cluster. Raises ServerError."""
    cluster = make_cluster(home, count)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def make_cluster(home: Path, count: int) -> Cluster:
    """`count` brokers, not started. Raises ServerError."""
    port, controller_port = free_port(), free_port()
    first = kafka_server(home, port, controller_port)
    first.command = ["-Xmx256m" if word.startswith("-Xmx") else word for word in first.command]
    # The JVM does not live long enough to need better compiled code.
    first.command.insert(first.command.index("java") + 1, "-XX:TieredStopAtLevel=1")
    properties = home / "kafka" / "server.properties"
    text = properties.read_text()
    for before, after in _CHANGES.items():
        assert before in text
        text = text.replace(before, after)
    properties.write_text(text)
    others = [_other(home / f"broker{number}", number, first, text) for number in range(2, count + 1)]
    return Cluster(first, others, home / "broker2" / "data")


def advertise(broker: Server, port: int) -> None:
    """Make a broker advertise this port of the machine to clients and other brokers. Call it before the start."""
    properties = Path(broker.command[-1])
    text = properties.read_text()
    name = "advertised.listeners=PLAINTEXT://"
    changed = text.replace(f"{name}{LOOPBACK}:{broker.port}", f"{name}{LOOPBACK}:{port}")
    assert changed != text, "Kafka's properties do not look as expected"
    properties.write_text(changed)


def _other(home: Path, number: int, first: Server, text: str) -> Server:
    """A broker that is no controller. It counts as ready at its start: a caller that needs it waits for it."""
    port, data = free_port(), home / "data"
    data.mkdir(parents=True)
    facts = f"version=1\ncluster.id={CLUSTER_ID}\nnode.id={number}\n"
    (data / "meta.properties").write_text(facts)  # saves the start of a JVM
    own = ("process.roles", "node.id", "log.dirs", "listeners", "advertised.listeners")
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in own]
    lines += ["process.roles=broker", f"node.id={number}", f"log.dirs={data}"]
    lines += [f"{name}=PLAINTEXT://{LOOPBACK}:{port}" for name in ("listeners", "advertised.listeners")]
    properties = home / "server.properties"
    properties.write_text("\n".join(lines) + "\n")
    command = [*first.command[:-1], str(properties)]
    return replace(
        first, name=f"kafka {number}", command=command, log_path=home / "kafka.log", url=kafka_url(port), port=port,
        is_ready=lambda: True,
    )  # fmt: skip
