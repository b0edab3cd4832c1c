"""Several producers of one library behind one: each appends to a part of a topic's partitions.

librdkafka sends one request for each partition, and an idempotent producer has few of them in flight for each broker.
So a group for many partitions takes as many round trips as there are requests, divided by these few. Several producers
multiply them. The order of the records of a partition stays: a partition belongs to one producer. The memory for
records that wait does not multiply: they share it.
"""

from collections.abc import Callable, Sequence
from typing import Final

from pipeline.clock import Clock
from pipeline.log.kafka_producer import Producer, ProducerError, Sent

PARTITIONS_EACH: Final = 8  # a request for each of them, in two or three round trips
PRODUCERS_MAX: Final = 8  # each has its threads, its connections and its share of the buffer
BUFFER_KBYTES: Final = 65_536  # of all of them together: one append, and what earlier ones left behind
_SHORT_SECONDS: Final = 0.001


class SpreadProducer:
    """Producer on as many others as a topic's partitions need. They share their fate: one that fails ends all."""

    def __init__(self, make: Callable[[int], Producer], clock: Clock) -> None:
        """Make the first one. `make` takes the KiB that a producer may buffer. Raises ProducerError, as `make` does."""
        self._make = make
        self._clock = clock
        self._producers = [make(BUFFER_KBYTES)]

    @property
    def is_broken(self) -> bool:
        return any(one.is_broken for one in self._producers)

    def partitions_for(self, topic: str, seconds_max: float) -> set[int]:
        deadline = self._clock.monotonic() + seconds_max
        known = self._producers[0].partitions_for(topic, seconds_max)
        wanted = min(PRODUCERS_MAX, -(-len(known) // PARTITIONS_EACH))
        if len(self._producers) == 1 and wanted > 1:
            self._divide(wanted)
            known = self._producers[0].partitions_for(topic, self._left(deadline))
        for one in self._producers[1:]:
            known = known & one.partitions_for(topic, self._left(deadline))
        return known

    def send(
        self, topic: str, entries: Sequence[tuple[int, bytes]], deadline: float
    ) -> tuple[dict[int, Sent], ProducerError | None]:
        if len(self._producers) == 1:
            return self._producers[0].send(topic, entries, deadline)
        parts: list[list[tuple[int, bytes]]] = [[] for _ in self._producers]
        for entry in entries:
            parts[entry[0] % len(parts)].append(entry)
        taken: dict[int, Sent] = {}
        refusal: ProducerError | None = None
        for producer, part in zip(self._producers, parts, strict=True):
            if part:
                sent, problem = producer.send(topic, part, deadline)
                taken |= sent
                refusal = refusal or problem
        return taken, refusal

    def _divide(self, count: int) -> None:
        """Put `count` producers in the place of the first. Raises ProducerError.

        librdkafka can't change the size of a buffer. This comes before the first record is sent: the first producer
        does not find partitions that are added later.
        """
        made: list[Producer] = []
        try:
            for _ in range(count):
                made.append(self._make(BUFFER_KBYTES // count))
        except ProducerError:
            for one in made:
                one.close(_SHORT_SECONDS)
            raise
        self._producers[0].close(_SHORT_SECONDS)
        self._producers = made

    def flush(self, seconds_max: float) -> None:
        deadline = self._clock.monotonic() + seconds_max
        for one in self._producers:  # the others go on meanwhile
            one.flush(self._left(deadline))

    def close(self, seconds_max: float) -> None:
        deadline = self._clock.monotonic() + seconds_max
        for one in self._producers:
            one.close(self._left(deadline))

    def _left(self, deadline: float) -> float:
        return max(deadline - self._clock.monotonic(), _SHORT_SECONDS)
