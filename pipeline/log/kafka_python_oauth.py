"""OAUTHBEARER for the producer of kafka-python-ng, whose own implementation ends badly if it fails.

If there is no token, it holds the connection for 10 s. If the broker refuses the token, its thread raises the error
again in each turn, without a pause. Here the connection is closed in both cases, and made again as after other losses.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from kafka import sasl
from kafka.errors import AuthenticationFailedError, KafkaConnectionError
from kafka.future import Future
from kafka.sasl import oauthbearer

from pipeline.log.kafka_oauth import OAUTHBEARER, Token, TokenError, Tokens

logger = logging.getLogger(__name__)

_TOKEN_SECONDS_MAX: Final = 1.0  # the thread of the producer waits: others of its connections wait too


class TokenProvider:
    """What kafka-python-ng asks for the token of a new connection."""

    def __init__(self, tokens: Tokens, extensions: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._extensions = dict(extensions)
        self._given: Token | None = None

    def token(self) -> str:
        """The token. Raises TokenError."""
        self._given = self._tokens.token(_TOKEN_SECONDS_MAX)
        return self._given.text

    def extensions(self) -> dict[str, str]:
        return self._extensions

    def refused(self) -> str:
        """The broker has refused the token that was given last. Returns that as text."""
        reason = f"a broker refuses the access token of {self._tokens.name}"
        if self._given is not None:
            self._tokens.reject(self._given, reason)
        return reason


class _Mechanism:
    """In place of `kafka.sasl.oauthbearer`."""

    validate_config = staticmethod(oauthbearer.validate_config)

    @staticmethod
    def try_authenticate(connection: Any, future: Future) -> Future:
        outcome = Future()
        provider: TokenProvider = connection.config["sasl_oauth_token_provider"]
        try:
            oauthbearer.try_authenticate(connection, outcome)
        except TokenError as error:
            reason = f"there is no access token: {error}"
        else:
            if outcome.succeeded():
                return future.success(True)
            is_refused = isinstance(outcome.exception, AuthenticationFailedError)
            reason = provider.refused() if is_refused else str(outcome.exception)
        logger.warning(
            "the event log's producer (Kafka) can't authenticate itself: %s",
            reason,
            extra={"action": "log_producer_refused"},
        )
        loss = KafkaConnectionError(reason)
        connection.close(error=loss)
        return future.failure(loss)


def use_tokens() -> None:
    """Replace the mechanism; a repeated call changes nothing."""
    sasl.MECHANISMS[OAUTHBEARER] = _Mechanism
