"""What the appending side of a Kafka log needs of a library: it hands over records, and learns what became of them.

Two libraries do it: `kafka_python` (kafka-python-ng) and `kafka_confluent` (confluent-kafka, on librdkafka).
"""

from collections.abc import Sequence
from typing import Protocol


class ProducerError(Exception):
    """A producer can't do now what it was asked for."""


class Sent(Protocol):
    """The records of one partition that one append handed to a producer."""

    @property
    def count(self) -> int:
        """How many records the producer took."""

    @property
    def is_done(self) -> bool:
        """Whether it is known for each of them what became of it, as far as `wait` has looked."""

    @property
    def failure(self) -> str | None:
        """Why one of them may not be durable; None: all are. Only if `is_done`."""

    @property
    def offsets(self) -> tuple[int, int]:
        """The offsets of the first and the last one. Only if `is_done` without a failure."""

    def wait(self, seconds_max: float) -> None:
        """Wait until `is_done`, or until time is up."""


class Producer(Protocol):
    """A Kafka library's producer. Keeps the records that it took, in order, and sends them later if it must.

    Not for use by several threads at once.
    """

    @property
    def is_broken(self) -> bool:
        """Whether it can append nothing more, and must be replaced."""

    def partitions_for(self, topic: str, seconds_max: float) -> set[int]:
        """The partitions of the topic that it knows. Raises ProducerError, perhaps before time is up."""

    def send(
        self, topic: str, entries: Sequence[tuple[int, bytes]], deadline: float
    ) -> tuple[dict[int, Sent], ProducerError | None]:
        """Hand over (partition, value) pairs in order; waits until `deadline` (monotonic) for room.

        Returns what was taken of each partition, and why the rest was not: from one record of it on, none.
        """

    def flush(self, seconds_max: float) -> None:
        """Send at once what it has, and wait until all is answered, or until time is up."""

    def close(self, seconds_max: float) -> None:
        """Close the connections; idempotent. Waits for answers until time is up; then it gives up the rest."""
