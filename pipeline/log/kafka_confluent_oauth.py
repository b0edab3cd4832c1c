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
# A producer whose token was refused is replaced after this time at the earliest: one broker may refuse each new token,
# while the others accept it.
REFUSED_SECONDS_MIN: Final = 30.0


class LibraryTokens:
    """Gives one producer its tokens."""

    def __init__(self, tokens: Tokens, extensions: Mapping[str, str], clock: Clock) -> None:
        self._tokens = tokens
        self._extensions = dict(extensions)
        self._clock = clock
        self._closed = threading.Event()
        self._is_asking = False
        self._given: Token | None = None  # what the producer has
        self._given_at = 0.0  # monotonic
        self._is_refused = False

    def give(self, _config: str) -> tuple[str, float, str, dict[str, str]]:
        """`oauth_cb`: the token, its end by the wall clock, the principal (which brokers ignore), and the extensions.

        A thread of librdkafka calls it, which has nothing else to do. Raises TokenError.
        """
        self._is_asking = True
        try:
            token = self._wait()
            self._given, self._given_at, self._is_refused = token, self._clock.monotonic(), False
        finally:
            self._is_asking = False
        left = token.expires_at - self._given_at
        return token.text, self._clock.now() + left, "", self._extensions

    def _wait(self) -> Token:
        deadline = self._clock.monotonic() + _SECONDS_MAX
        while True:
            try:
                return self._tokens.token(_POLL_SECONDS)
            except TokenError:
                if self._clock.monotonic() >= deadline or self._closed.wait(_POLL_SECONDS):
                    raise

    def note_refusal(self) -> None:
        """Record that a broker has refused the producer's token."""
        if self._given is not None:
            self._is_refused = True
            self._tokens.reject(self._given, f"a broker refuses the access token of {self._tokens.name}")

    @property
    def are_late(self) -> bool:
        """Whether the producer has a token that is not accepted, another one is there, and it does not ask for it.

        An expired one is kept after failures, and if the wall clock was set back: librdkafka then asks later by as
        much. One that the brokers refuse before its end, after another key for example, is kept until that end.
        """
        given, now = self._given, self._clock.monotonic()
        if given is None or self._is_asking:
            return False
        is_expired = now >= given.expires_at
        if not is_expired and not (self._is_refused and now - self._given_at >= REFUSED_SECONDS_MIN):
            return False
        try:
            other = self._tokens.token(0)
        except TokenError:
            return False
        return is_expired or other.text != given.text

    def close(self) -> None:
        """Let a call of `give` end: the producer's own end waits for it."""
        self._closed.set()
