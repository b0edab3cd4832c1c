"""How connections to Kafka's brokers are encrypted and authenticated: TLS, and SASL with PLAIN, SCRAM or OAUTHBEARER.

SCRAM is that of kafka-python (RFC 5802, RFC 7677). PLAIN is one message (RFC 4616), and so is a token (RFC 7628).
"""

import ssl
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kafka.scram import ScramClient

from pipeline.clock import Clock, SystemClock
from pipeline.errors import SettingsError
from pipeline.log.kafka_oauth import OAUTHBEARER, TokenError, Tokens, first_message, status_of, tokens_of
from pipeline.settings import Settings, oauth_extensions_of
from pipeline.tls import TlsFiles

PLAIN: Final = "PLAIN"
READABLE: Final = frozenset({PLAIN, OAUTHBEARER})  # mechanisms that send what others could use


class KafkaRefusedError(Exception):
    """A broker and this client don't accept each other: TLS, or SASL. The message says what to change."""


class KafkaAnsweredError(ValueError):
    """A broker answers with an error code that does not say what to change."""


@dataclass(frozen=True, slots=True)
class Sasl:
    """Who this client is for Kafka."""

    mechanism: str
    user: str = ""
    password: str = field(default="", repr=False)
    tokens: Tokens | None = None  # of OAUTHBEARER
    extensions: Mapping[str, str] = field(default_factory=dict)

    @property
    def refusal(self) -> str:
        """What a broker means that refuses this client."""
        if self.tokens is not None:
            return f"it refuses the access token of {self.tokens.name}"
        who = f"KAFKA_USER={self.user!r} by {self.mechanism}"
        return f"it refuses {who}: there is no such user, or KAFKA_PASSWORD is wrong"

    def conversation(self, seconds_max: float) -> Generator[bytes, bytes, None]:
        """The client's messages; the server's answer to each is sent in. It may wait `seconds_max` for a token.

        Raises KafkaRefusedError on a wrong answer, or if there is no token.
        """
        if self.tokens is not None:
            yield from self._present_token(self.tokens, seconds_max)
            return
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

    def _present_token(self, tokens: Tokens, seconds_max: float) -> Generator[bytes, bytes, None]:
        """A broker answers nothing to a token that it accepts, and else with its reason."""
        try:
            token = tokens.token(seconds_max)
        except TokenError as error:
            raise KafkaRefusedError(f"there is no access token for it: {error}") from error
        answer = yield first_message(token, self.extensions)
        if answer:
            status = status_of(answer)
            tokens.reject(token, f"{tokens.name}: a broker refuses its access token ({status})")
            raise KafkaRefusedError(f"{self.refusal} ({status})")


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """What the settings say about connections to brokers. Without TLS and SASL by default."""

    files: TlsFiles | None = None
    context: ssl.SSLContext | None = None  # made of the files
    sasl: Sasl | None = None

    @classmethod
    def of(cls, settings: Settings, clock: Clock | None = None) -> "KafkaSecurity":
        """Read the files. Raises SettingsError."""
        files, mechanism = settings.kafka_tls, settings.kafka_sasl_mechanism
        sasl = None
        try:
            if mechanism == OAUTHBEARER:
                extensions = oauth_extensions_of(settings.kafka_oauth_extensions)
                sasl = Sasl(mechanism, tokens=tokens_of(settings, clock or SystemClock()), extensions=extensions)
            elif mechanism:
                sasl = Sasl(mechanism, settings.kafka_user, settings.kafka_password)
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
        if self.sasl is not None and self.sasl.tokens is None:
            options["sasl_plain_username"] = self.sasl.user
            options["sasl_plain_password"] = self.sasl.password
        protocol = "PLAINTEXT" if self.context is None else "SSL"
        options["security_protocol"] = protocol if self.sasl is None else f"SASL_{protocol}"
        return options


NO_SECURITY: Final = KafkaSecurity()
