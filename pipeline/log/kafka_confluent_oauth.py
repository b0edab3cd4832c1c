"""Tokens of OAUTHBEARER for librdkafka, which asks for one ahead of the end of the last one."""

import threading
from collections.abc import Mapping
from typing import Final

from pipeline.clock import Clock
from pipeline.log.kafka_oauth import Token, TokenError, Tokens

# After a failure librdkafka asks again in 10 s, so no failure is reported earlier than necessary. A producer that is
# being made must get its first token within 10 s.
_SECONDS_MAX: Final = 8.0
_POLL_SECONDS: Final = 0.1


class LibraryTokens:
    """Gives one producer its tokens."""

    def __init__(self, tokens: Tokens, extensions: Mapping[str, str], clock: Clock) -> None:
        self._tokens = tokens
        self._extensions = dict(extensions)
        self._clock = clock
        self._closed = threading.Event()
        self._is_asking = False
        self._expires_at: float | None = None  # monotonic; of the token that the producer has

    def give(self, _config: str) -> tuple[str, float, str, dict[str, str]]:
        """`oauth_cb`: the token, its end by the wall clock, the principal (which brokers ignore), and the extensions.

        A thread of librdkafka calls it, which has nothing else to do. Raises TokenError.
        """
        self._is_asking = True
        try:
            token = self._wait()
        finally:
            self._is_asking = False
        self._expires_at = token.expires_at
        left = token.expires_at - self._clock.monotonic()
        return token.text, self._clock.now() + left, "", self._extensions

    def _wait(self) -> Token:
        deadline = self._clock.monotonic() + _SECONDS_MAX
        while True:
            try:
                return self._tokens.token(_POLL_SECONDS)
            except TokenError:
                if self._clock.monotonic() >= deadline or self._closed.wait(_POLL_SECONDS):
                    raise

    @property
    def are_late(self) -> bool:
        """Whether the producer's token has expired, another one is there, and it does not ask for it.

        That happens after failures, and if the wall clock was set back: librdkafka then asks later by as much.
        """
        if self._expires_at is None or self._is_asking or self._clock.monotonic() < self._expires_at:
            return False
        try:
            self._tokens.token(0)
        except TokenError:
            return False
        return True

    def close(self) -> None:
        """Let a call of `give` end: the producer's own end waits for it."""
        self._closed.set()
