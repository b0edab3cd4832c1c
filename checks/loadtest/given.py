"""The system at `--url`: the key, password and TLS for it, and whether it takes events."""

import argparse
import base64
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from checks.loadtest.options import url_problem
from pipeline.errors import SettingsError
from pipeline.settings import Settings, read_secret

SECONDS_MAX: Final = 5.0  # for one response
_SECRETS: Final = ("DATABASE_URL", "OPERATOR_PASSWORD", "INGEST_KEY")
_REFUSED: Final = {
    401: "it wants an API key, and {key}: see --key-file",
    403: "the API key is for other protocols",
    404: "it takes no events there; the port of operators takes none",
}


class NotThereError(Exception):
    """The system at the given URL does not answer, or takes no events from the load test."""


@dataclass(frozen=True)
class Access:
    """The way to a system. The key and the password are never on a command line, since `ps` would show them."""

    url: str
    operators: str = ""  # the URL of its page and its health, if it has another port
    key: str = field(default="", repr=False)  # API key
    password: str = field(default="", repr=False)  # of operators
    tls: ssl.SSLContext | None = None  # for https://

    @property
    def page(self) -> str:
        """The URL of its page and its health."""
        return self.operators or self.url

    @property
    def place(self) -> tuple[str, int]:
        """Host and port for events."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def events_tls(self) -> ssl.SSLContext | None:
        """TLS of the connections for events; None: plain HTTP."""
        return self.tls if urlsplit(self.url).scheme == "https" else None

    def head(self, body_bytes: int) -> bytes:
        """The head of a request with events."""
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return (
            "POST /api/logs HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n"
            f"{key}Content-Length: {body_bytes}\r\n\r\n"
        ).encode()

    def look(self, path: str) -> Any:
        """The answer at an address for operators. Raises OSError."""
        asked = urllib.request.Request(f"{self.page}{path}")
        if self.password:
            coded = base64.b64encode(f"load-test:{self.password}".encode()).decode()
            asked.add_header("Authorization", f"Basic {coded}")
        return self._open(asked)

    def check_events(self) -> None:
        """Check that the system takes events with this key. Sends none. Raises NotThereError."""
        # An empty list is no event. Ingest refuses a wrong key before it reads the body.
        asked = urllib.request.Request(f"{self.url}/api/logs", b"[]", {"Content-Type": "application/json"})
        if self.key:
            asked.add_header("Authorization", f"Bearer {self.key}")
        try:
            self._open(asked).close()
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _REFUSED:
                    key = "does not know this one" if self.key else "there is none"
                    why = _REFUSED[error.code].format(key=key)
                    raise NotThereError(f"--url {self.url}: {error.code} {error.reason}: {why}") from None
        except (OSError, http.client.HTTPException) as error:
            raise NotThereError(f"--url {self.url}: it takes no events: {explain(error)}") from error

    def _open(self, asked: urllib.request.Request) -> Any:
        # No proxy: the load test goes to this machine only.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls)
        )
        return opener.open(asked, timeout=SECONDS_MAX)


def access_of(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Access, str | None]:
    """The way to the system of the options, and the URL of its database if the environment has one.

    Raises SettingsError if a file can't be used.
    """
    names = [*_SECRETS, *(f"{name}_FILE" for name in _SECRETS)]
    settings = Settings.from_environ({name: environ[name] for name in names if name in environ})
    key = settings.ingest_key if options.key_file is None else read_secret(str(options.key_file))
    if not key.isascii():
        raise SettingsError("the API key has characters that no API key has")
    operators = environ.get("OPERATOR_URL", "").rstrip("/")
    if operators and (problem := url_problem(operators)) is not None:
        raise SettingsError(f"OPERATOR_URL={operators}: {problem}")
    access = Access(options.url.rstrip("/"), operators, key, settings.operator_password, tls_with(options.ca_file))
    has_database = environ.get("DATABASE_URL") or environ.get("DATABASE_URL_FILE")
    return access, settings.database_url if has_database else None


def tls_with(ca_file: Path | None) -> ssl.SSLContext:
    """TLS that accepts certificates of the CA in the file, or of the CAs of this machine. Raises SettingsError."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # of ssl too
        raise SettingsError(f"--ca-file {ca_file}: it has no certificate that can be used: {error}") from error
    # The load goes to this machine only, and a certificate mostly has the name that other machines use.
    context.check_hostname = False
    return context


def explain(error: Exception) -> str:
    """Why a system did not answer, and what may help."""
    if isinstance(error, urllib.error.HTTPError):
        more = ""
        if error.code == 401:
            more = ": it wants the password of operators: set OPERATOR_PASSWORD or OPERATOR_PASSWORD_FILE"
        elif error.code == 404:
            more = ": if it has a port for operators, set OPERATOR_URL"
        return f"{error.code} {error.reason}{more}"
    why = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(why, ssl.SSLCertVerificationError):
        return f"its certificate: {why.verify_message}: --ca-file must name the file of its CA"
    if isinstance(why, ssl.SSLError):
        return f"{why}: does it speak HTTPS there?"
    if isinstance(why, ConnectionResetError | http.client.RemoteDisconnected | http.client.BadStatusLine):
        return f"{why}: does it speak HTTP there, or HTTPS?"
    return str(why)
