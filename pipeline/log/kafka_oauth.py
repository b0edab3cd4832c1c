"""Access tokens for Kafka's OAUTHBEARER: from a token endpoint by client credentials, or from a file.

The request is RFC 6749, section 4.4, with HTTP Basic (2.3.1); its errors are those of section 5.2. The client's message
to a broker is RFC 7628, section 3.1.
"""

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote_plus, urlencode, urlsplit

from pipeline.clock import Clock
from pipeline.settings import Settings
from pipeline.text import on_one_line
from pipeline.tls import TlsFiles

OAUTHBEARER: Final = "OAUTHBEARER"

_FETCH_SECONDS_MAX: Final = 10.0  # of each step of a request: a connect, an answer
_REQUEST_SECONDS_MAX: Final = 30.0  # from a connection to the last byte of the answer
_ANSWER_BYTES_MAX: Final = 1 << 18  # tokens with many groups have some ten kilobytes
_REASON_CHARS_MAX: Final = 300
_RENEW_SHARE: Final = 0.75  # of a token's life; librdkafka asks for another at 80 %
# After a failure. Each process asks, and an identity provider may lock clients out that ask without end.
_PAUSE_SECONDS_MIN: Final = 0.5
_PAUSE_SECONDS_MAX: Final = 4.0
# An endpoint need not say how long its token is valid, and a file never says it. Brokers know it.
_UNKNOWN_SECONDS: Final = 60.0
_OK: Final = 200
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")  # RFC 6750, and what no header or message can break


class TokenError(Exception):
    """There is no token now. The message says why, and never has a token or a secret in it."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token. Times are monotonic."""

    text: str = field(repr=False)
    renew_at: float
    expires_at: float


class Tokens(Protocol):
    """A source of tokens. Any thread may use it."""

    @property
    def name(self) -> str:
        """The setting that names the source, with its value, for messages."""

    def token(self, seconds_max: float) -> Token:
        """A token that has not expired; waits for `seconds_max` at most. Raises TokenError."""

    def reject(self, token: Token, reason: str) -> None:
        """A broker has refused this token: do not give it out again."""


class FileTokens:
    """A token in a file, which another program renews. It is read for each use."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = Path(path)
        self._clock = clock
        self.name = f"KAFKA_OAUTH_TOKEN_FILE={path!r}"

    def token(self, seconds_max: float) -> Token:
        try:
            text = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
            raise TokenError(f"{self.name} can't be read: {reason}") from error
        if not _TOKEN.fullmatch(text):
            raise TokenError(f"{self.name} has no access token: it must be one line without spaces")
        now = self._clock.monotonic()
        return Token(text, now, now + _UNKNOWN_SECONDS)

    def reject(self, token: Token, reason: str) -> None:
        """The next use reads the file again anyway."""


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """Where a client gets tokens, and as whom."""

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    form: Mapping[str, str]
    files: TlsFiles
    context: ssl.SSLContext | None  # None: the endpoint is on this machine, without TLS

    @property
    def name(self) -> str:
        return f"KAFKA_OAUTH_URL={self.url.partition('?')[0]}"

    def fetch(self) -> tuple[str, float]:
        """A new token, and for how many seconds it is valid. Raises TokenError."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        connection: http.client.HTTPConnection
        if self.context is None:
            connection = http.client.HTTPConnection(host, parts.port, timeout=_FETCH_SECONDS_MAX)
        else:
            connection = http.client.HTTPSConnection(host, parts.port, timeout=_FETCH_SECONDS_MAX, context=self.context)
        watch, is_late = None, threading.Event()
        try:
            connection.connect()
            watch = threading.Timer(_REQUEST_SECONDS_MAX, _end, (connection.sock, is_late))
            watch.daemon = True
            watch.start()
            connection.request(
                "POST",
                (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                urlencode({"grant_type": "client_credentials", **self.form}),
                {
                    "Accept": "application/json",
                    "Authorization": f"Basic {self._basic()}",
                    "Content-Type": "application/x-www-form-urlencoded",
                },
            )
            answer = connection.getresponse()
            status, body = answer.status, answer.read(_ANSWER_BYTES_MAX)
        except ssl.SSLError as error:
            if is_late.is_set():
                raise self._late() from error
            raise TokenError(f"{self.name}: {self.files.explain(error, host) or 'TLS fails'}") from error
        except (OSError, http.client.HTTPException) as error:
            if is_late.is_set():
                raise self._late() from error
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise TokenError(f"{self.name} does not answer: {on_one_line(reason)}") from error
        finally:
            if watch is not None:
                watch.cancel()
            connection.close()
        if is_late.is_set():  # what arrived until then may look complete
            raise self._late()
        return self._token_of(status, body)

    def _late(self) -> TokenError:
        return TokenError(f"{self.name} does not answer: its answer is not complete after {_REQUEST_SECONDS_MAX:g} s")

    def _basic(self) -> str:
        """User and password of HTTP Basic: the specification wants them encoded as in a form first."""
        login = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}"
        return base64.b64encode(login.encode()).decode()

    def _token_of(self, status: int, body: bytes) -> tuple[str, float]:
        """The token in an answer. Raises TokenError."""
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            document = {}
        if status != _OK:
            raise TokenError(self._refusal(status, document))
        text, seconds = document.get("access_token"), document.get("expires_in", _UNKNOWN_SECONDS)
        if not isinstance(text, str) or not _TOKEN.fullmatch(text):
            raise TokenError(f"{self.name} answers without an access_token: is it the URL of the token endpoint?")
        try:
            seconds = float(seconds)  # some send it as text
        except (TypeError, ValueError):
            seconds = _UNKNOWN_SECONDS
        if not seconds > 0:
            raise TokenError(f"{self.name} gives an access token that has expired already (expires_in={seconds:g})")
        return text, seconds

    def _refusal(self, status: int, document: Mapping[str, Any]) -> str:
        code, reason = document.get("error"), document.get("error_description")
        if not isinstance(code, str):
            return f"{self.name} answers with status {status} and gives no access token"
        words = f"{code}: {reason}" if isinstance(reason, str) else code
        for secret in (self.client_secret, quote_plus(self.client_secret), self._basic()):
            words = words.replace(secret, "***")  # some repeat what they were sent
        words = on_one_line(words)[:_REASON_CHARS_MAX]
        return f"{self.name} refuses KAFKA_OAUTH_CLIENT_ID={self.client_id!r} ({words}), status {status}"


def _end(connection: socket.socket, is_late: threading.Event) -> None:
    """End a request that takes too long. The time-out of a socket is for each read: a byte now and then passes it."""
    is_late.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # also below TLS: another thread reads


class EndpointTokens:
    """Tokens of an endpoint, each used until it is renewed, ahead of its end.

    A request runs in a thread of its own: a caller waits no longer than it may, and nobody waits for the renewal of a
    token that is still valid. Its weakness: a name server that does not answer can hold that thread for longer.
    """

    def __init__(self, endpoint: TokenEndpoint, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._changed = threading.Condition()
        self._token: Token | None = None
        self._problem = ""
        self._is_fetching = False
        self._again_at = float("-inf")
        self._pause_seconds = _PAUSE_SECONDS_MIN
        self.name = endpoint.name

    def token(self, seconds_max: float) -> Token:
        deadline = self._clock.monotonic() + seconds_max
        with self._changed:
            while True:
                now, token = self._clock.monotonic(), self._token
                if (token is None or now >= token.renew_at) and not self._is_fetching and now >= self._again_at:
                    self._is_fetching = True
                    threading.Thread(target=self._fetch, name="kafka-token", daemon=True).start()
                if token is not None and now < token.expires_at:
                    return token
                if not self._is_fetching:
                    raise TokenError(self._problem or f"{self.name}: its latest access token has expired")
                if now >= deadline:
                    raise TokenError(self._problem or f"{self.name} has not answered yet")
                self._changed.wait(deadline - now)

    def reject(self, token: Token, reason: str) -> None:
        with self._changed:
            if self._token is token:
                self._token, self._problem = None, reason

    def _fetch(self) -> None:
        asked_at = self._clock.monotonic()
        token, problem = None, ""
        try:
            text, seconds = self._endpoint.fetch()
            token = Token(text, asked_at + seconds * _RENEW_SHARE, asked_at + seconds)
        except TokenError as error:
            problem = str(error)
        except Exception as error:  # else no token would be asked for again; its text may hold the secret
            problem = f"{self.name} can't be used: {type(error).__name__}"
        with self._changed:
            self._is_fetching, self._problem = False, problem
            if token is not None:
                self._token, self._pause_seconds = token, _PAUSE_SECONDS_MIN
            # After a success too: a broker may refuse each new token.
            self._again_at = self._clock.monotonic() + self._pause_seconds
            if token is None:
                self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MAX)
            self._changed.notify_all()


def tokens_of(settings: Settings, clock: Clock) -> Tokens:
    """The source that the settings name. Raises ValueError if KAFKA_OAUTH_CA_FILE can't be used."""
    if settings.kafka_oauth_token_file:
        return FileTokens(settings.kafka_oauth_token_file, clock)
    files = TlsFiles("KAFKA_OAUTH", settings.kafka_oauth_ca_file, "", "")
    form = {"scope": settings.kafka_oauth_scope, "audience": settings.kafka_oauth_audience}
    context = files.context() if urlsplit(settings.kafka_oauth_url).scheme == "https" else None
    endpoint = TokenEndpoint(
        settings.kafka_oauth_url,
        settings.kafka_oauth_client_id,
        settings.kafka_oauth_client_secret,
        {name: value for name, value in form.items() if value},
        files,
        context,
    )
    return EndpointTokens(endpoint, clock)


def first_message(token: Token, extensions: Mapping[str, str]) -> bytes:
    """The client's message to a broker."""
    pairs = {"auth": f"Bearer {token.text}", **extensions}
    return ("n,,\x01" + "".join(f"{name}={value}\x01" for name, value in pairs.items()) + "\x01").encode()


def status_of(answer: bytes) -> str:
    """The broker's reason in its answer to a token that it refuses (RFC 7628, section 3.2.2)."""
    try:
        document = json.loads(answer)
        said = {name: document[name] for name in ("status", "scope") if isinstance(document.get(name), str)}
    except (ValueError, AttributeError):
        said = {}
    return on_one_line(", ".join(f"{name} {value}" for name, value in said.items()))[:_REASON_CHARS_MAX] or "no reason"
