"""The name in a client's certificate that TLS has verified (INGEST_TLS_CLIENT). Pure.

It is the first of these that can be the name of an account: its URIs (SPIFFE), its DNS names, its common name. No
header field is read here: a field that names a certificate may be forged.
"""

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.account import CERTIFICATE_NAME


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What holds for the connections with a certificate."""

    name: str | None  # None: no name in it can be that of an account
    expires: float  # seconds since the epoch


def client_certificate(peer: Mapping[str, Any] | None) -> ClientCertificate | None:
    """The certificate of a connection, in the form of `ssl.SSLObject.getpeercert`; None if it has none."""
    if not peer:
        return None
    name = next((name for name in _names(peer) if CERTIFICATE_NAME.fullmatch(name)), None)
    return ClientCertificate(name, float(ssl.cert_time_to_seconds(peer["notAfter"])))


def _names(peer: Mapping[str, Any]) -> Iterator[str]:
    alternatives = peer.get("subjectAltName", ())
    for wanted in ("URI", "DNS"):
        yield from (name for kind, name in alternatives if kind == wanted)
    for part in peer.get("subject", ()):
        yield from (name for kind, name in part if kind == "commonName")
