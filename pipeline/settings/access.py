"""Who may send events, and who may see what operators see."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.account import is_loopback
from pipeline.settings.field import setting
from pipeline.settings.http import HttpSettings

OPERATOR_CONNECTIONS_BESIDE_PAGES: Final = 100
OPERATOR_PASSWORD_CHARS_MIN: Final = 12  # nothing slows down who guesses
_LINK: Final = re.compile(r"https?://[^\s/?#]+\S*")
_WEB_URL: Final = re.compile(r"https?://[^\s/?#]+[^\s?#]*")  # names of pages are appended


@dataclass(frozen=True, kw_only=True)
class OperatorSettings(HttpSettings):
    """Operators: live page, health and metrics."""

    operator_port: int = setting(
        0,
        "Port for operators: live page, health, metrics, /docs. INGEST_PORT then has only what clients send to, and "
        "/healthz and /readyz (docs/operators.md). 0: all of them are on INGEST_PORT",
        low=0,
        high=65535,
        when="clients on other machines reach INGEST_PORT",
    )
    operator_host: str = setting(
        "127.0.0.1",
        "Address of OPERATOR_PORT. On another one than the loopback address, it needs OPERATOR_PASSWORD or "
        "OPERATOR_OPEN",
        when="operators or Prometheus are on other machines",
        is_name=True,
    )
    operator_password: str = setting(
        "",
        "Password for what operators see: HTTP's Basic with any user, or Bearer; at least 12 characters",
        when="others than the programs of this machine reach OPERATOR_PORT, or INGEST_PORT without an OPERATOR_PORT",
        is_secret=True,
    )
    operator_open: bool = setting(
        False,
        "Show operators' addresses without a password to everybody who reaches them",
        when="a network or a proxy in front keeps strangers away",
    )
    runbooks_url: str = setting(
        "",
        "Where the runbooks are published, as in https://docs.example/sluice/runbooks: the page and status link there; "
        "empty: ingest serves its own copy at /runbooks, beside the page",
        when="your operators keep runbooks of their own, or read the documentation as a site",
    )
    page_urls: str = setting(
        "",
        "Links at the foot of the live page: `NAME=URL` with commas between, as in "
        "Grafana=https://grafana.example,Flower=http://127.0.0.1:5555. run.sh fills in what it runs",
        when="operators open Grafana, Prometheus, Flower or a documentation of yours from the page",
    )

    prometheus_url: str = setting(
        "",
        "The Prometheus that scrapes this system, as ingest reaches it, such as http://127.0.0.1:9090: with it, the "
        "live page has charts of 6 hours and 7 days. run.sh fills it in, if it runs one",
        when="a Prometheus runs, and operators want longer charts than 15 minutes on the page",
    )

    def ready_url(self, ingest_url: str = "") -> str:
        """Where to ask whether ingest is ready: the ingest at `ingest_url`, by default that of this machine.

        If clients need a certificate there, it is OPERATOR_PORT instead: who asks has none.
        """
        if self.ingest_tls_client == "required":
            ingest_url = ""
            host, port = self.operator_host, self.operator_port
        else:
            host, port = self.ingest_host, self.ingest_port
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # asked
        shown = f"[{host}]" if ":" in host else host
        return f"{ingest_url.rstrip('/') or f'{self.ingest_scheme}://{shown}:{port}'}/readyz"

    @property
    def operator_connections_max(self) -> int:
        """Open connections of OPERATOR_PORT of one process: those of live pages, and others that soon end."""
        return self.page_viewers_max + OPERATOR_CONNECTIONS_BESIDE_PAGES


@dataclass(frozen=True, kw_only=True)
class ApiKeySettings(OperatorSettings):
    """API keys of clients."""

    ingest_keys: bool = setting(
        False,
        "Accept events only with an API key (docs/keys.md). `python -m tasks.keys create NAME` makes one",
        when="others than the programs of this machine reach ingest",
    )
    ingest_open: bool = setting(
        False,
        "Accept events without an API key from everybody who reaches INGEST_HOST",
        when="a network or a proxy in front keeps strangers away",
    )
    ingest_key: str = setting(
        "",
        "API key that the client of this package sends",
        when="INGEST_KEYS is on where INGEST_URL leads to",
        is_secret=True,
    )
    api_keys_max: int = setting(
        1000,
        "API keys at once",
        unit="keys",
        low=1,
        high=100_000,
        when="more clients need keys of their own. Each process reads all of them after each change, 300 bytes each",
    )


def client_certificate_problems(settings: ApiKeySettings) -> Iterator[str]:
    """Values that contradict each other for clients' certificates."""
    mode = settings.ingest_tls_client
    if mode == "off":
        if settings.ingest_tls_client_ca:
            yield "INGEST_TLS_CLIENT_CA needs INGEST_TLS_CLIENT=optional or required"
        if settings.ingest_tls_client_as_key:
            yield "INGEST_TLS_CLIENT_AS_KEY needs INGEST_TLS_CLIENT=optional or required"
        return
    left_out = [name.upper() for name in ("ingest_tls_cert", "ingest_tls_client_ca") if not getattr(settings, name)]
    if left_out:
        yield f"INGEST_TLS_CLIENT={mode} needs {' and '.join(left_out)}"
    if mode == "required" and not settings.operator_port:
        yield (
            "INGEST_TLS_CLIENT=required needs OPERATOR_PORT: health checks, browsers and Prometheus have no certificate"
        )
    if settings.ingest_tls_client_as_key and not settings.ingest_keys:
        yield "INGEST_TLS_CLIENT_AS_KEY needs INGEST_KEYS=yes: without it no client needs a key"


def operator_problems(settings: OperatorSettings) -> Iterator[str]:
    """Values that contradict each other for operators."""
    if settings.operator_port == settings.ingest_port:
        yield f"OPERATOR_PORT={settings.operator_port} is INGEST_PORT too: set it to 0 if both should be one port"
    if not settings.operator_port and settings.operator_host != OperatorSettings.operator_host:
        yield f"OPERATOR_HOST={settings.operator_host} needs OPERATOR_PORT"
    if 0 < len(settings.operator_password) < OPERATOR_PASSWORD_CHARS_MIN:
        yield f"OPERATOR_PASSWORD has fewer than {OPERATOR_PASSWORD_CHARS_MIN} characters"
    if settings.runbooks_url and not _WEB_URL.fullmatch(settings.runbooks_url):
        yield f"RUNBOOKS_URL={settings.runbooks_url!r} is neither empty nor http:// or https://, then a host"
    if "@" in settings.prometheus_url:  # the message leaves out the address, which may have a password
        yield "PROMETHEUS_URL has a user before its host, and ingest sends none: leave out what is before the @"
    elif settings.prometheus_url and not _WEB_URL.fullmatch(settings.prometheus_url):
        yield f"PROMETHEUS_URL={settings.prometheus_url!r} is neither empty nor http:// or https://, then a host"
    for name, url in page_urls_of(settings.page_urls):
        if not name or not _LINK.fullmatch(url):
            yield f"PAGE_URLS has {name}={url}, which is not a name, `=`, and http:// or https:// with a host"


def page_urls_of(text: str) -> list[tuple[str, str]]:
    """The names and the URLs of PAGE_URLS."""
    pairs = [one.strip().partition("=") for one in text.split(",") if one.strip()]
    return [(name.strip(), url.strip()) for name, _, url in pairs]


def public_problem(host: str, operator_host: str | None, *, takes_all: bool, shows_all: bool) -> str | None:
    """Why ingest may not listen: other machines could send events, or see what operators see. None if it may.

    `operator_host` is that of OPERATOR_PORT; None if operators share the port of `host`. `takes_all` and `shows_all`:
    neither a key or password nor a setting decides who may.
    """
    if takes_all and not is_loopback(host):
        return (
            f"INGEST_HOST={host} can be reached from other machines, and no client needs an API key: set "
            "INGEST_KEYS=yes (docs/keys.md), INGEST_TLS_CLIENT=required (docs/client-certificates.md), or "
            "INGEST_OPEN=yes if everybody who reaches it may send events"
        )
    if shows_all and operator_host is None and not is_loopback(host):
        return (
            f"INGEST_HOST={host} can be reached from other machines, and so can the live page, health and metrics: set "
            "OPERATOR_PORT to move them to the loopback address (docs/operators.md), or OPERATOR_PASSWORD, or "
            "OPERATOR_OPEN=yes if everybody who reaches them may read them"
        )
    if shows_all and operator_host is not None and not is_loopback(operator_host):
        return (
            f"OPERATOR_HOST={operator_host} can be reached from other machines, and operators need no password there: "
            "set OPERATOR_PASSWORD (docs/operators.md), or OPERATOR_OPEN=yes if everybody who reaches it may look"
        )
    return None
