"""The producer of kafka-python-ng.

Its weakness: it is not idempotent. If it retries a batch internally (a leader moves, a connection breaks), it can store
a record twice. `event_id` makes that harmless.
"""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from pipeline.clock import Clock
from pipeline.log.kafka_clock import measure_by_monotonic_clock
from pipeline.log.kafka_producer import ProducerError, Sent
from pipeline.log.kafka_python_oauth import TokenProvider, use_tokens
from pipeline.log.kafka_security import KafkaSecurity
from pipeline.log.kafka_topic import PRODUCER_BATCH_BYTES

API_VERSION: Final = (2, 6, 0)  # kafka-python uses it; detecting it takes seconds while the broker is down


class _Sent:
    """The futures of the records of one partition."""

    def __init__(self) -> None:
        self.futures: list[Any] = []

    @property
    def count(self) -> int:
        return len(self.futures)

    @property
    def is_done(self) -> bool:
        return self.futures[-1].is_done and all(future.is_done for future in self.futures)

    @property
    def failure(self) -> str | None:
        failed = next((future for future in self.futures if not future.succeeded()), None)
        return None if failed is None else str(failed.exception)

    @property
    def offsets(self) -> tuple[int, int]:
        return self.futures[0].value.offset, self.futures[-1].value.offset

    def wait(self, seconds_max: float) -> None:
        with contextlib.suppress(KafkaError):  # `failure` has it
            self.futures[-1].get(timeout=seconds_max)  # a partition's answers arrive in the order of its records


class PythonProducer:
    """Producer on kafka-python-ng."""

    is_broken = False

    def __init__(self, client: KafkaProducer, clock: Clock) -> None:
        self.client = client
        self._clock = clock

    @classmethod
    def connect(cls, bootstrap: Sequence[str], security: KafkaSecurity, clock: Clock) -> "PythonProducer":
        """A producer for these brokers (host:port). Returns at once; it connects in a thread of its own."""
        measure_by_monotonic_clock()
        options = security.producer_options()
        if security.sasl is not None and security.sasl.tokens is not None:
            use_tokens()
            options["sasl_oauth_token_provider"] = TokenProvider(security.sasl.tokens, security.sasl.extensions)
        client = KafkaProducer(
            bootstrap_servers=list(bootstrap),
            api_version=API_VERSION,
            acks="all",
            retries=5,
            max_in_flight_requests_per_connection=1,  # a retried request must not overtake another
            linger_ms=5,
            batch_size=PRODUCER_BATCH_BYTES,
            max_block_ms=50,
            request_timeout_ms=10_000,  # a retry before its frozen broker resumes stores records twice
            **options,
        )
        return cls(client, clock)

    def partitions_for(self, topic: str, seconds_max: float) -> set[int]:
        try:
            known: set[int] = self.client.partitions_for(topic)
        except KafkaError as error:
            raise ProducerError(str(error)) from error
        return known

    def send(
        self, topic: str, entries: Sequence[tuple[int, bytes]], deadline: float
    ) -> tuple[dict[int, Sent], ProducerError | None]:
        sent: defaultdict[int, _Sent] = defaultdict(_Sent)
        refusal: ProducerError | None = None
        try:
            for partition, value in entries:
                future = self._send(topic, partition, value, deadline)
                sent[partition].futures.append(future)
        except KafkaError as error:
            refusal = ProducerError(str(error))
        return {**sent}, refusal

    def _send(self, topic: str, partition: int, value: bytes, deadline: float) -> Any:
        """Give one record to the producer; waits for room in its buffer. Raises KafkaError if there is none."""
        while True:
            try:
                return self.client.send(topic, value, partition=partition)
            except KafkaTimeoutError:  # the producer did not accept this record
                if self._clock.monotonic() >= deadline:
                    raise

    def flush(self, seconds_max: float) -> None:
        with contextlib.suppress(KafkaError):
            self.client.flush(timeout=seconds_max)

    def close(self, seconds_max: float) -> None:
        self.client.close(timeout=seconds_max)
