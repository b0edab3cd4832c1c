"""One connection to a broker, against servers that answer wrongly."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.clock import SystemClock
from pipeline.errors import LogUnavailableError
from pipeline.log.kafka_link import KafkaLink
from pipeline.log.kafka_security import NO_SECURITY, KafkaSecurity, Sasl
from pipeline.log.kafka_wire import KafkaWire

CLOCK = SystemClock()
METADATA = (3, 10)


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[tuple[tuple[str, int], threading.Event]]:
    """A server that answers the first request, given its correlation id, and closes; and whether it was asked."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def once() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection, connection.makefile("rb") as requests:
                    [size] = struct.unpack(">i", requests.read(4))
                    connection.sendall(answer(requests.read(size)[4:8]))
                    asked.set()

        threading.Thread(target=once, daemon=True).start()
        yield server.getsockname(), asked


def frame(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


@pytest.mark.parametrize(
    ("answer", "hint"), [(b"", " at the first request: its listener may want TLS or SASL"), (b"\0\0\0\x0cab", "")]
)
def test_a_listener_that_closes_before_it_answers_may_want_tls_or_sasl(answer: bytes, hint: str) -> None:
    with answering(lambda _: answer) as (address, _):
        link = KafkaLink(address, NO_SECURITY, CLOCK, CLOCK.monotonic() + WAIT_SECONDS_MAX)
        with pytest.raises(ConnectionResetError) as raised:
            link.ask(METADATA, b"", CLOCK.monotonic() + WAIT_SECONDS_MAX)
        link.close()
        assert str(raised.value) == f"Kafka closed the connection{hint}"


def test_after_a_malformed_answer_the_next_broker_is_asked() -> None:
    # Given a first broker whose answer about SASL ends after its head
    with answering(frame) as (first, was_first_asked), answering(lambda _: b"") as (second, was_second_asked):
        security = KafkaSecurity(sasl=Sasl("SCRAM-SHA-256", "u", "p"))
        wire = KafkaWire([first, second], call_seconds_max=WAIT_SECONDS_MAX, clock=CLOCK, security=security)
        with pytest.raises(LogUnavailableError, match="Kafka closed the connection at the first request"):
            wire.topic("t")
        assert was_first_asked.wait(WAIT_SECONDS_MAX)
        assert was_second_asked.wait(WAIT_SECONDS_MAX)
        wire.close()


def test_an_error_code_about_sasl_is_a_refusal_and_no_silence() -> None:
    with answering(lambda correlation: frame(correlation + struct.pack(">hi", 35, 0))) as (address, _):
        security = KafkaSecurity(sasl=Sasl("SCRAM-SHA-256", "u", "p"))
        wire = KafkaWire([address], call_seconds_max=WAIT_SECONDS_MAX, clock=CLOCK, security=security)
        with pytest.raises(
            LogUnavailableError, match=r"refuses at EVENT_LOG_URL: broker .*: SaslHandshake fails with error 35"
        ):
            wire.topic("t")
        wire.close()
