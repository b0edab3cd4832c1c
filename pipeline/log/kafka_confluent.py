"""The producer of confluent-kafka, on librdkafka: idempotent, so that its own retries store no record twice.

What it guarantees and how it fails is in librdkafka's INTRODUCTION.md, "Idempotent Producer" and "Message persistence
status". Python is not told that status, so every failure of a record that was taken is indeterminate.
"""

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from pipeline.clock import Clock
from pipeline.log.kafka_confluent_oauth import LibraryTokens
from pipeline.log.kafka_producer import ProducerError, Sent
from pipeline.log.kafka_security import KafkaSecurity
from pipeline.log.kafka_spread import BUFFER_KBYTES
from pipeline.log.kafka_topic import BATCH_BYTES_NEEDED, PRODUCER_BATCH_BYTES

# Below the library "kafka", of which only warnings are written. Its lines are served in `poll` and `flush`.
_LIBRARY_LOGGER: Final = logging.getLogger("kafka.librdkafka")

# How long it tries to send a record. It stores none twice, but a partition is refused until the answer is known.
_MESSAGE_TIMEOUT_MS: Final = 10_000
_RECONNECT_MS_MAX: Final = 1_000
# One call of `poll`: from 0.2 s on, the library waits for the whole time even if there is something to serve.
_POLL_SECONDS: Final = 0.1
_GIVE_UP_SECONDS: Final = 0.5  # until the reports about records that were given up are served
_REFUSED: Final = (
    "SASL authentication error: "  # in an error, if a broker refuses this client; not if there is no token
)
_OPTIONS: Final = {
    "client.id": "sluice",
    "enable.idempotence": True,  # acks=all, order kept, at most 5 requests in flight
    "linger.ms": 5,  # `flush` does not wait for it
    "batch.size": PRODUCER_BATCH_BYTES,
    "message.max.bytes": 2 * BATCH_BYTES_NEEDED,  # the topic's own limit decides
    "message.timeout.ms": _MESSAGE_TIMEOUT_MS,
    "request.timeout.ms": _MESSAGE_TIMEOUT_MS,
    "reconnect.backoff.max.ms": _RECONNECT_MS_MAX,
    "queue.buffering.max.messages": 0,  # the bytes limit it
    "allow.auto.create.topics": False,
    "log.connection.close": False,  # brokers close idle connections
}


class _Sent:
    """The records of one partition, counted as their delivery reports come in."""

    __slots__ = ("_confirmed", "_first", "_last", "_problem", "_producer", "_reports", "count")

    def __init__(self, producer: "ConfluentProducer") -> None:
        self._producer = producer
        self._reports = 0
        self._confirmed = 0
        self._problem = ""
        self._first = self._last = -1
        self.count = 0

    def report(self, error: KafkaError | None, message: Any) -> None:
        """A delivery report: called from `poll` and `flush`, for each record, in order.

        What is called in here may fail for the library's reasons, so nothing is confirmed before the last line.
        """
        self._reports += 1
        if error is not None:
            self._problem = error.str()
            return
        offset = message.offset()
        # It was stored at an earlier attempt, so long ago that the broker does not know where.
        if offset is None or offset < 0:
            self._problem = "it was stored, and its offset is not known"
            return
        if self._first < 0:
            self._first = offset
        self._last = offset
        self._confirmed += 1

    def give_up(self) -> None:
        """Nothing will be known of what has no report yet."""
        self._reports = self.count

    @property
    def failure(self) -> str | None:
        if self._confirmed == self.count:
            return None
        return self._problem or "the producer has failed before all reports were there"

    @property
    def is_done(self) -> bool:
        return self._reports >= self.count

    @property
    def offsets(self) -> tuple[int, int]:
        return self._first, self._last

    def wait(self, seconds_max: float) -> None:
        self._producer.serve_until(self, seconds_max)


class ConfluentProducer:
    """Producer on confluent-kafka. Make it in the process that uses it: its threads do not survive a fork."""

    def __init__(
        self, bootstrap: Sequence[str], security: KafkaSecurity, clock: Clock, *, buffer_kbytes: int = BUFFER_KBYTES
    ) -> None:
        """Returns at once; it connects in threads of its own. Raises ProducerError if the library refuses an option.

        Records that wait have at most `buffer_kbytes` KiB.

        With tokens, the library's constructor returns when it has one, which takes 1 to 10 s. So a thread calls it.
        """
        self._clock = clock
        self._topic = ""
        self._known: set[int] = set()
        self._open: list[_Sent] = []  # without all their reports, as far as is known
        self.is_broken = False
        self._client: confluent_kafka.Producer | None = None
        self._why_not = ""  # why there is no client
        self._refusal = ""  # of a broker that does not accept this client
        self._changing = threading.Lock()
        self._is_closed = False
        self._tokens: LibraryTokens | None = None
        options = {
            **_OPTIONS,
            "bootstrap.servers": ",".join(bootstrap),
            "queue.buffering.max.kbytes": buffer_kbytes,
            "error_cb": self._note,
            **client_options(security),
        }
        if security.sasl is None or security.sasl.tokens is None:
            try:
                self._client = confluent_kafka.Producer(options, logger=_LIBRARY_LOGGER)
            except KafkaException as error:  # a file that it can't read
                raise ProducerError(_text(error)) from error
        else:
            self._why_not = "it waits for an access token"
            self._tokens = LibraryTokens(security.sasl.tokens, security.sasl.extensions, clock)
            options["oauth_cb"] = self._tokens.give
            threading.Thread(target=self._make, args=(options,), name="kafka-producer", daemon=True).start()

    def _note(self, error: KafkaError) -> None:
        """`error_cb`: called from `poll` and `flush`."""
        if error.code() == KafkaError._AUTHENTICATION:
            self._refusal = f"({error.str()})"
            if self._tokens is not None and _REFUSED in error.str():
                self._tokens.note_refusal()

    def _make(self, options: dict[str, Any]) -> None:
        try:
            client = confluent_kafka.Producer(options, logger=_LIBRARY_LOGGER)
        except KafkaException as error:
            self._why_not, self.is_broken = _text(error), True
            return
        with self._changing:
            if not self._is_closed:
                self._client = client

    def partitions_for(self, topic: str, seconds_max: float) -> set[int]:
        if self._tokens is not None and self._tokens.are_late:
            self.is_broken = True
        if topic == self._topic:
            self._poll(0)
            return self._known
        try:
            found = self._ready_client().list_topics(topic, timeout=seconds_max).topics.get(topic)
        except KafkaException as error:
            self._poll(0)  # serves what the library has to say about it
            raise ProducerError(f"{_text(error)} {self._refusal}".rstrip()) from error
        self._refusal = ""
        if found is None or found.error is not None:
            raise ProducerError("there is no such topic" if found is None else found.error.str())
        self._topic, self._known = topic, set(found.partitions)
        return self._known

    def send(
        self, topic: str, entries: Sequence[tuple[int, bytes]], deadline: float
    ) -> tuple[dict[int, Sent], ProducerError | None]:
        produce = self._ready_client().produce
        sent: dict[int, _Sent] = {}
        refusal: ProducerError | None = None
        try:
            for partition, value in entries:
                its = sent.get(partition)
                if its is None:
                    its = _Sent(self)
                try:
                    produce(topic, value, None, partition, its.report)
                except BufferError:
                    self._send_late(topic, partition, value, its, deadline)
                its.count += 1
                sent[partition] = its
        except ProducerError as error:
            refusal = error
        except KafkaException as error:
            self.is_broken = self.is_broken or error.args[0].code() == KafkaError._FATAL
            refusal = ProducerError(_text(error))
        self._open = [one for one in self._open if not one.is_done]
        self._open += sent.values()
        return {**sent}, refusal

    def _send_late(self, topic: str, partition: int, value: bytes, its: _Sent, deadline: float) -> None:
        """Wait for room in the buffer for one record. Raises ProducerError, KafkaException."""
        client = self._ready_client()
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise ProducerError("its buffer is full")
            self._poll(min(left, _POLL_SECONDS))
            try:
                client.produce(topic, value, None, partition, its.report)
            except BufferError:
                continue
            return

    def flush(self, seconds_max: float) -> None:
        if self._client is not None:
            self._serve(self._client.flush, seconds_max)

    def serve_until(self, sent: _Sent, seconds_max: float) -> None:
        """Serve reports until those of `sent` are complete, or until time is up."""
        deadline = self._clock.monotonic() + seconds_max
        while not sent.is_done and not self.is_broken:
            left = deadline - self._clock.monotonic()
            self._poll(max(0.0, min(left, _POLL_SECONDS)))
            if left <= 0:
                return

    def close(self, seconds_max: float) -> None:
        with self._changing:
            self._is_closed = True
            client, self._client = self._client, None
        if self._tokens is not None:
            self._tokens.close()
        if client is None:
            return
        self._serve(client.flush, seconds_max)
        client.purge(in_queue=True, in_flight=True, blocking=False)
        self._serve(client.flush, _GIVE_UP_SECONDS)
        for sent in self._open:
            sent.give_up()
        self._open.clear()

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _ready_client(self) -> confluent_kafka.Producer:
        if self._client is None:
            raise ProducerError("it is closed" if self._is_closed else self._why_not)
        return self._client

    def _poll(self, seconds: float) -> None:
        if self._client is not None:
            self._serve(self._client.poll, seconds)

    def _serve(self, call: Callable[[float], int], seconds: float) -> None:
        """Call `poll` or `flush`.

        A fatal error of librdkafka is raised there, and not given to `error_cb`. Reports that are served after it in
        the same call end in a SystemError.
        """
        try:
            call(seconds)
        except (KafkaException, SystemError) as error:
            if not self.is_broken:
                _LIBRARY_LOGGER.warning(
                    "the event log's producer (Kafka) has failed, and is replaced: %s",
                    _text(error),
                    extra={"action": "log_producer_failed"},
                )
            self.is_broken = True


def client_options(security: KafkaSecurity) -> dict[str, Any]:
    """How connections to brokers are encrypted and authenticated, for librdkafka."""
    options: dict[str, Any] = {}
    files, sasl = security.files, security.sasl
    if files is not None:
        paths = ssl.get_default_verify_paths()  # the CAs of this machine, as for the other connections
        authorities = files.ca or paths.cafile or paths.capath
        given = {
            "ssl.ca.location": authorities,
            "ssl.certificate.location": files.certificate,
            "ssl.key.location": files.key or files.certificate,  # the key may be in the same file
        }
        options |= {name: value for name, value in given.items() if value}
    if sasl is not None:
        options["sasl.mechanism"] = sasl.mechanism
    if sasl is not None and sasl.tokens is None:
        options |= {"sasl.username": sasl.user, "sasl.password": sasl.password}
    protocol = "PLAINTEXT" if files is None else "SSL"
    options["security.protocol"] = protocol if sasl is None else f"SASL_{protocol}"
    return options


def _text(error: BaseException) -> str:
    """What librdkafka says, without the codes."""
    said = error.args[0] if error.args else None
    if isinstance(said, KafkaError):
        return str(said.str())
    return str(error) if error.__cause__ is None else _text(error.__cause__)
