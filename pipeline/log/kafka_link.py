"""One connection to one broker of Kafka: encrypted and authenticated, if the settings say so."""

import contextlib
import socket
import ssl
import struct
from collections.abc import Generator, Iterator
from typing import Final

from pipeline.account import is_loopback
from pipeline.clock import Clock
from pipeline.log.kafka_encoding import ResponseReader, blob, string
from pipeline.log.kafka_security import READABLE, KafkaAnsweredError, KafkaRefusedError, KafkaSecurity, Sasl

CLIENT_ID: Final = "sluice"
FRAME_BYTES_MAX: Final = 16 << 20  # of a response; those requested here have some kilobytes

# Request keys and the versions used
_SASL_HANDSHAKE: Final = (17, 1)
_SASL_AUTHENTICATE: Final = (36, 1)

# Error codes with a meaning here
_UNKNOWN_MECHANISM: Final = 33
_NO_SASL: Final = 34  # "illegal state": a listener without SASL
_WRONG_PASSWORD: Final = 58

_TLS_ALERT: Final = 0x15  # the first byte with which TLS answers something else
# Part of a session's life after which its connection is replaced: Kafka closes one that is used after its session.
_SESSION_SHARE: Final = 0.8
_SHORTEST_SECONDS: Final = 0.001  # 0 would mean non-blocking


class KafkaLink:
    """A connection; not for use by several threads at once. After a failed request it must be closed."""

    def __init__(self, address: tuple[str, int], security: KafkaSecurity, clock: Clock, deadline: float) -> None:
        """Connect by `deadline` (monotonic). Raises OSError (including TimeoutError), ValueError, KafkaRefusedError."""
        self._address = address
        self._security = security
        self._clock = clock
        self._correlation = 0
        self._is_new = True
        self._expires_at = float("inf")  # monotonic
        self._socket = socket.create_connection(address, timeout=self._left(deadline))
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._encrypt(deadline)
            if security.sasl is not None:
                with self._explaining(in_handshake=False):
                    self._authenticate(security.sasl, deadline)
        except BaseException:
            self._socket.close()
            raise

    def is_usable(self) -> bool:
        """Whether the connection is open and its session lasts: between two requests Kafka sends nothing.

        TLS may have sent something for itself. To read is what handles that, so this does not only look.
        """
        if self._clock.monotonic() >= self._expires_at:
            return False
        self._socket.setblocking(False)
        try:
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def ask(
        self,
        kind: tuple[int, int],
        body: bytes,
        deadline: float,
        *,
        compact: bool = False,
        bytes_max: int = FRAME_BYTES_MAX,
    ) -> ResponseReader:
        """Send one request and read its response.

        Raises OSError (including TimeoutError), ValueError, KafkaRefusedError.
        """
        with self._explaining(in_handshake=False):
            return self._exchange(kind, body, deadline, compact=compact, bytes_max=bytes_max)

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._socket.close()

    # --- Security ---------------------------------------------------------------------------------------------------

    def _encrypt(self, deadline: float) -> None:
        context = self._security.context
        if context is None:
            return
        with self._explaining(in_handshake=True):
            encrypted = context.wrap_socket(
                self._socket, server_hostname=self._address[0], do_handshake_on_connect=False
            )
            self._socket = encrypted
            encrypted.settimeout(self._left(deadline))
            encrypted.do_handshake()

    def _authenticate(self, sasl: Sasl, deadline: float) -> None:
        """Authenticate by SASL. Raises OSError, ValueError, KafkaRefusedError."""
        # The settings refuse this for EVENT_LOG_URL; but a broker there can name brokers on other machines.
        if sasl.mechanism in READABLE and self._security.context is None and not is_loopback(self._address[0]):
            what = "password" if sasl.tokens is None else "access token"
            raise KafkaRefusedError(
                f"KAFKA_SASL_MECHANISM={sasl.mechanism} would send it the {what} unencrypted: EVENT_LOG_URL must begin "
                "with kafka+ssl://, or use SCRAM-SHA-512"
            )
        answer = self._exchange(_SASL_HANDSHAKE, string(sasl.mechanism), deadline)
        error, mechanisms = answer.int16(), answer.array(answer.string)
        if error == _UNKNOWN_MECHANISM:
            raise KafkaRefusedError(
                f"it does not take KAFKA_SASL_MECHANISM={sasl.mechanism}, but {' and '.join(mechanisms) or 'none'}"
            )
        if error == _NO_SASL:
            raise KafkaRefusedError("its listener has no SASL: leave KAFKA_SASL_MECHANISM empty, or use another port")
        if error:
            raise KafkaAnsweredError(f"SaslHandshake fails with error {error}")
        conversation = sasl.conversation(self._left(deadline))
        token: bytes | None = next(conversation)
        while token is not None:
            answer = self._exchange(_SASL_AUTHENTICATE, blob(token), deadline)
            error, message = answer.int16(), answer.string()
            if error == _WRONG_PASSWORD:
                raise KafkaRefusedError(sasl.refusal)
            if error:
                raise KafkaAnsweredError(f"SaslAuthenticate fails with error {error} {message}")
            token = _next_token(conversation, answer.blob())
            session_ms = answer.int64()  # 0: no end
            if session_ms > 0:
                self._expires_at = self._clock.monotonic() + session_ms / 1000 * _SESSION_SHARE

    @contextlib.contextmanager
    def _explaining(self, *, in_handshake: bool) -> Iterator[None]:
        """Turn an error of TLS or SASL into one that says what to change."""
        host, port = self._address
        try:
            yield
        except KafkaRefusedError as error:
            raise KafkaRefusedError(f"broker {host}:{port}: {error}") from error
        except ssl.SSLError as error:
            problem = self._security.explain(error, host, in_handshake=in_handshake)
            if problem is None:
                raise
            raise KafkaRefusedError(f"broker {host}:{port}: {problem}") from error

    # --- Requests ---------------------------------------------------------------------------------------------------

    def _exchange(
        self,
        kind: tuple[int, int],
        body: bytes,
        deadline: float,
        *,
        compact: bool = False,
        bytes_max: int = FRAME_BYTES_MAX,
    ) -> ResponseReader:
        self._correlation = (self._correlation + 1) % (1 << 31)
        header = struct.pack(">hhi", *kind, self._correlation) + string(CLIENT_ID) + (b"\0" if compact else b"")
        self._socket.settimeout(self._left(deadline))
        self._socket.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
        prefix = self._receive(4, deadline)
        self._is_new = False
        if prefix[0] == _TLS_ALERT:
            raise KafkaRefusedError("its listener speaks TLS: EVENT_LOG_URL must begin with kafka+ssl://")
        size = int(struct.unpack(">i", prefix)[0])
        if not 4 <= size <= bytes_max:
            raise ValueError(f"not an answer of Kafka: {size} bytes long")
        answer = ResponseReader(self._receive(size, deadline))
        if answer.int32() != self._correlation:
            raise ValueError("not the answer to this request")
        if compact:
            answer.tags()
        return answer

    def _receive(self, size: int, deadline: float) -> bytes:
        pieces = bytearray(size)
        left = memoryview(pieces)
        while left:
            self._socket.settimeout(self._left(deadline))
            count = self._socket.recv_into(left)
            if not count:
                raise ConnectionResetError(
                    "Kafka closed the connection"
                    + (" at the first request: its listener may want TLS or SASL" if self._is_new else "")
                )
            left = left[count:]
        return bytes(pieces)

    def _left(self, deadline: float) -> float:
        """Seconds to wait."""
        return max(deadline - self._clock.monotonic(), _SHORTEST_SECONDS)


def _next_token(conversation: Generator[bytes, bytes, None], answer: bytes) -> bytes | None:
    """The client's next message; None if the conversation has ended. Raises KafkaRefusedError."""
    try:
        return conversation.send(answer)
    except StopIteration:
        return None
