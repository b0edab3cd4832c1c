"""Ingest's HTTP server: addresses, certificates, and limits of requests."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.settings.field import setting

# scheme://host, and a port: what browsers send in Origin, after lowering its case.
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_USUAL_PORTS: Final = {"http": "80", "https": "443"}  # browsers leave them out


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Where ingest listens, and what it accepts there."""

    ingest_host: str = setting(
        "127.0.0.1",
        "Address that ingest listens on. On another one than the loopback address, it needs INGEST_KEYS, "
        "INGEST_TLS_CLIENT=required or INGEST_OPEN",
        when="0.0.0.0 in a container, or if clients are on other machines",
        is_name=True,
    )
    ingest_port: int = setting(
        8080, "Port of ingest, shared by all its processes", low=1, high=65535, when="another program has the port"
    )
    ingest_tls_cert: str = setting(
        "",
        "File with ingest's certificate and its chain (PEM), for HTTPS; empty: plain HTTP. Read again when it changes",
        when="clients reach ingest over a network, and no proxy before it speaks TLS",
    )
    ingest_tls_key: str = setting(
        "",
        "File with the private key of INGEST_TLS_CERT (PEM, without a password); empty: the key is in that file",
        when="together with INGEST_TLS_CERT",
    )
    ingest_tls_client: str = setting(
        "off",
        "Certificates of clients: off: none is asked for; optional: a client may have one; required: connections "
        "without one are refused. The name in it is the client's account; with INGEST_KEYS only for requests without a "
        "key (INGEST_TLS_CLIENT_AS_KEY). optional and required need TLS 1.3 (docs/client-certificates.md)",
        choices=("off", "optional", "required"),
        when="clients have certificates of an authority of your own",
    )
    ingest_tls_client_ca: str = setting(
        "",
        "File with the authorities that sign clients' certificates (PEM), and with lists of revoked ones if there are "
        "any. Read again when it changes",
        when="together with INGEST_TLS_CLIENT",
    )
    ingest_tls_client_as_key: bool = setting(
        False,
        "With INGEST_KEYS: a client's certificate stands for an API key in requests that have none",
        when="clients with a certificate should not need a key as well",
    )
    ingest_url: str = setting(
        "",
        "URL of ingest for the client; empty: http:// or https:// with INGEST_HOST and INGEST_PORT",
        when="the client of this package runs on another machine than ingest",
    )
    ingest_cors_origins: str = setting(
        "",
        "Origins whose pages may send events from a browser, with commas between, as in https://shop.example; *: every "
        "origin; empty: none (docs/browsers.md)",
        when="scripts of web pages send events",
    )
    ingest_metrics_port: int = setting(
        0,
        "Port of one ingest process' own metrics; 0: none beside /metrics",
        low=0,
        high=65535,
        when="several ingest processes share INGEST_PORT: give each its own port, so that Prometheus can scrape each",
    )
    body_bytes_max: int = setting(
        1 << 20,
        "Largest body, after decompression",
        low=1024,
        high=64 << 20,
        when="clients send larger batches. A body needs up to four times its size in memory",
    )
    body_events_max: int = setting(
        1000,
        "Most events in one body",
        low=1,
        high=100_000,
        when="clients send larger batches. The bucket admits a body as a whole",
    )
    protocol_body_bytes_max: int = setting(
        16 << 20,
        "Largest body in another protocol than Sluice's own, after inflating",
        low=1024,
        high=256 << 20,
        when="a shipper has larger batches, and can't be told to send smaller ones",
    )
    protocol_body_events_max: int = setting(
        20_000,
        "Most events in one body in another protocol than Sluice's own",
        low=1,
        high=1_000_000,
        when="a shipper has larger batches; one of them passes the bucket as a whole",
    )
    event_time_min_ms: int = setting(
        100_000_000_000,
        "Earliest `timestamp` of an event, epoch milliseconds: 1973; an earlier one was most likely sent in seconds",
        unit="ms",
        low=0,
        high=253_402_300_799_999,
        when="0 if events are really from 1970 to 1973",
    )
    bodies_bytes_max: int = setting(
        64 << 20,
        "Bytes of bodies, inflated ones included, that one ingest process holds; above it, bodies over 16 KiB get 503",
        low=1 << 20,
        high=64 << 30,
        when="many clients send large bodies on slow lines. Events need up to four times these bytes for a moment. "
        "Bodies up to 16 KiB come beside it: at most 16 KiB for each of INGEST_CONNECTIONS_MAX",
    )
    hard_bodies_bytes_max: int = setting(
        16 << 20,
        "Bytes of slow bodies (invalid, or with rare content) that wait to be parsed; above it 503",
        low=1 << 20,
        high=1 << 30,
        when="BODY_BYTES_MAX is raised: there should be room for several of the largest bodies",
    )
    request_seconds_max: float = setting(
        10.0,
        "Total time in which headers and body must arrive; a slower client is disconnected. A TLS handshake has "
        "as much time",
        low=0.1,
        high=600,
        when="clients on slow lines get 408: raise it. Slow requests are used as an attack: lower it",
    )
    ingest_connections_max: int = setting(
        2000,
        "Open connections of one ingest process; further ones get a 503",
        unit="connections",
        low=1,
        high=1_000_000,
        when="clients get 503 for connections. Raise the limit of open files too",
    )
    ingest_connections_per_address_max: int = setting(
        0,
        "The part of INGEST_CONNECTIONS_MAX that one client address may have, or one /64 network of IPv6; 0: all. "
        "Addresses of TRUSTED_PROXIES have no such limit",
        unit="connections",
        low=0,
        high=1_000_000,
        when="clients connect to ingest directly. Leave it 0 if they come by an address that they share: of a proxy or "
        "load balancer that TRUSTED_PROXIES does not name, or of a network behind NAT",
    )
    page_viewers_max: int = setting(
        20,
        "Live pages that one ingest process serves at once; further ones show that there are too many",
        unit="pages",
        low=0,
        high=1000,
        when="0 to have no stream. Each open page costs one message a second",
    )
    stop_seconds_max: float = setting(
        10.0,
        "Time for running requests to end and the appender to be flushed at shutdown",
        low=0.1,
        high=600,
        when="the platform kills processes sooner, or requests take longer",
    )

    @property
    def ingest_scheme(self) -> str:
        """`https` if ingest has a certificate, else `http`."""
        return "https" if self.ingest_tls_cert else "http"


def http_problems(settings: HttpSettings) -> Iterator[str]:
    """Origins that no browser sends, and a key of no certificate."""
    try:
        origins_of(settings.ingest_cors_origins)
    except ValueError as error:
        yield f"INGEST_CORS_ORIGINS: {error}"
    if settings.ingest_tls_key and not settings.ingest_tls_cert:
        yield "INGEST_TLS_KEY needs INGEST_TLS_CERT: without it ingest speaks plain HTTP"


def origins_of(text: str) -> frozenset[str]:
    """The origins of INGEST_CORS_ORIGINS as browsers send them; `*` is all of them. Raises ValueError."""
    found = set()
    for part in filter(None, (one.strip().lower() for one in text.split(","))):
        match = _ORIGIN.fullmatch(part)
        if match is None and part != "*":
            raise ValueError(
                f"{part!r} is no origin: https://, a host, and its port if that is not the usual one; no path"
            )
        is_usual = match is not None and match[2] is not None and _USUAL_PORTS.get(match[1]) == match[2]
        found.add(part.rpartition(":")[0] if is_usual else part)
    if "*" in found and len(found) > 1:
        raise ValueError("* is all origins: leave the others out")
    return frozenset(found)
