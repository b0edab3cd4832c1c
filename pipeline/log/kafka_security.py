"""How connections to Kafka's brokers are encrypted and authenticated: TLS, and SASL with PLAIN or SCRAM.

SCRAM is that of kafka-python (RFC 5802, RFC 7677). PLAIN is one message (RFC 4616).
"""

import ssl
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Final

from kafka.scram import ScramClient

from pipeline.errors import SettingsError
from pipeline.settings import Settings
from pipeline.tls import TlsFiles

PLAIN: Final = "PLAIN"


class KafkaRefusedError(Exception):
    """A broker and this client don't accept each other: TLS, or SASL. The message says what to change."""


@dataclass(frozen=True, slots=True)
class Sasl:
    """Who this client is for Kafka."""

    mechanism: str
    user: str
    password: str = field(repr=False)

    def conversation(self) -> Generator[bytes, bytes, None]:
        """The client's messages; the server's answer to each is sent in. Raises KafkaRefusedError on a wrong answer."""
        if self.mechanism == PLAIN:
            yield f"\0{self.user}\0{self.password}".encode()
            return
        scram = ScramClient(self.user, self.password, self.mechanism)
        first = yield scram.first_message().encode()
        try:
            scram.process_server_first_message(first.decode())
            final = yield scram.final_message().encode()
            scram.process_server_final_message(final.decode())
        except (ValueError, KeyError) as error:  # among them: its signature is wrong, so it does not know the password
            raise KafkaRefusedError(
                f"its answer in {self.mechanism} is wrong: it may not be the server that it claims to be"
            ) from error


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """What the settings say about connections to brokers. Without TLS and SASL by default."""

    files: TlsFiles | None = None
    context: ssl.SSLContext | None = None  # made of the files
    sasl: Sasl | None = None

    @classmethod
    def of(cls, settings: Settings) -> "KafkaSecurity":
        """Read the files. Raises SettingsError."""
        files = settings.kafka_tls
        sasl = None
        if settings.kafka_sasl_mechanism:
            sasl = Sasl(settings.kafka_sasl_mechanism, settings.kafka_user, settings.kafka_password)
        try:
            return cls(files, None if files is None else files.context(), sasl)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def explain(self, error: ssl.SSLError, host: str, *, in_handshake: bool) -> str | None:
        """What an error of TLS means and what to do; None if it is no problem of the settings."""
        return None if self.files is None else self.files.explain(error, host, in_handshake=in_handshake)

    def producer_options(self) -> dict[str, Any]:
        """The same for kafka-python."""
        options: dict[str, Any] = {}
        if self.context is not None:
            options["ssl_context"] = self.context
        if self.sasl is not None:
            options["sasl_mechanism"] = self.sasl.mechanism
            options["sasl_plain_username"] = self.sasl.user
            options["sasl_plain_password"] = self.sasl.password
        protocol = "PLAINTEXT" if self.context is None else "SSL"
        options["security_protocol"] = protocol if self.sasl is None else f"SASL_{protocol}"
        return options


NO_SECURITY: Final = KafkaSecurity()
