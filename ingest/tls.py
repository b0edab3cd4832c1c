"""HTTPS at ingest: its certificate and the authorities of its clients, which are read again when their files change."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.errors import SettingsError
from pipeline.loops import Loop
from pipeline.names import TlsRefusal
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0  # between two looks whether the files have changed
Stamp = tuple[tuple[int, int, int], ...]  # of each file: inode, time of change (ns), size; zeros: it is not there

_MODES: Final = {"optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_REVOCATION_LIST: Final = b"-----BEGIN X509 CRL-----"
_NO_CERTIFICATE: Final = "PEER_DID_NOT_RETURN_A_CERTIFICATE"  # OpenSSL's reason
# OpenSSL's codes for a client's certificate that is not accepted. All others: TlsRefusal.INVALID.
_REFUSALS: Final = {
    3: TlsRefusal.REVOCATIONS,  # no list of its authority
    9: TlsRefusal.EXPIRED,  # not valid yet
    10: TlsRefusal.EXPIRED,
    11: TlsRefusal.REVOCATIONS,
    12: TlsRefusal.REVOCATIONS,  # the list has expired
    18: TlsRefusal.UNKNOWN_CA,
    19: TlsRefusal.UNKNOWN_CA,
    20: TlsRefusal.UNKNOWN_CA,
    21: TlsRefusal.UNKNOWN_CA,
    23: TlsRefusal.REVOKED,
}


def refusal_of(error: ssl.SSLError) -> TlsRefusal | None:
    """Why a handshake failed for the client's certificate; None if it failed for another reason."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _REFUSALS.get(error.verify_code, TlsRefusal.INVALID)
    return TlsRefusal.MISSING if error.reason == _NO_CERTIFICATE else None


class _Handshake(ssl.SSLObject):
    """One connection. The event loop does not report a failed handshake, so it is counted here."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            refusal = refusal_of(error)
            if refusal is not None and isinstance(self.context, _Verifying):
                self.context.on_refused(refusal)
            raise


class _Verifying(ssl.SSLContext):
    """A context that verifies the certificates of clients."""

    sslobject_class = _Handshake
    on_refused: Callable[[TlsRefusal], None]


class Newest(ssl.SSLContext):
    """The context of a listening socket. Each new connection gets the newest one, with new authorities too.

    An SSLContext can't forget an authority. So new files make a new context.
    """

    newest: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What event loops call for each connection."""
        return self.newest.wrap_bio(*arguments, **options)


@dataclass(frozen=True, slots=True)
class ClientAuthorities:
    """Whose certificates of clients are accepted: INGEST_TLS_CLIENT_CA, and INGEST_TLS_CLIENT."""

    file: Path
    mode: str  # optional or required


@dataclass(slots=True)
class Certificate:
    """The certificate and key of INGEST_TLS_CERT and INGEST_TLS_KEY, as contexts for new connections.

    Connections that are open keep the certificate that they began with. `operator_context` is that of OPERATOR_PORT:
    browsers and Prometheus have no certificate.
    """

    cert: Path
    key: Path | None
    clients: ClientAuthorities | None = None  # None: clients are not asked for a certificate
    on_refused: Callable[[TlsRefusal], None] = lambda refusal: None
    context: Newest = field(init=False)
    operator_context: Newest = field(init=False)
    _loaded: Stamp = field(init=False)
    _refused: Stamp = field(init=False, default=())

    def __post_init__(self) -> None:
        self._loaded = self._stamp()
        self.context = Newest(ssl.PROTOCOL_TLS_SERVER)
        self.operator_context = Newest(ssl.PROTOCOL_TLS_SERVER)
        self._take(*self._read())

    def reload_if_changed(self) -> bool:
        """Load the files if they have changed, and return whether new ones are in use.

        Files that can't be used change nothing; a line in the log says why.
        """
        stamp = self._stamp()
        if stamp in (self._loaded, self._refused):
            return False
        try:
            self._take(*self._read())
        except SettingsError as error:
            self._refused = stamp  # files that change again are read again
            logger.warning(
                "the new certificate is not used, and the one before stays: %s",
                error,
                extra={"action": "certificate_refused"},
            )
            return False
        self._loaded, self._refused = stamp, ()
        files = ", ".join(str(path) for path in self._files())
        logger.info("a new certificate is in use: %s", files, extra={"action": "certificate_loaded"})
        return True

    def is_newest(self, connection: ssl.SSLObject) -> bool:
        """Whether a connection was verified by the files that are in use."""
        return connection.context is self.context.newest

    def _take(self, context: ssl.SSLContext, operator_context: ssl.SSLContext) -> None:
        self.context.newest, self.operator_context.newest = context, operator_context

    def _read(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """Contexts for ingest and operators. Raises SettingsError if a file can't be used."""
        plain = self._with_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        if self.clients is None:
            return plain, plain
        verifying = _Verifying(ssl.PROTOCOL_TLS_SERVER)
        self._with_certificate(verifying)
        verifying.on_refused = lambda refusal: self.on_refused(refusal)  # noqa: PLW0108 - it is set later
        _verify_clients(verifying, self.clients)
        return verifying, plain

    def _with_certificate(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        _load(context, self.cert, self.key)
        return context

    def _files(self) -> list[Path]:
        of_clients = None if self.clients is None else self.clients.file
        return [path for path in (self.cert, self.key, of_clients) if path is not None]

    def _stamp(self) -> Stamp:
        return tuple(_stamp_of(path) for path in self._files())


def certificate_of(settings: Settings) -> Certificate | None:
    """The certificate that the settings name; None: plain HTTP. Raises SettingsError if its files can't be used."""
    if not settings.ingest_tls_cert:
        return None
    clients = None
    if settings.ingest_tls_client != "off":
        clients = ClientAuthorities(Path(settings.ingest_tls_client_ca), settings.ingest_tls_client)
    key = Path(settings.ingest_tls_key) if settings.ingest_tls_key else None
    return Certificate(Path(settings.ingest_tls_cert), key, clients)


async def follow(certificate: Certificate, looked: Callable[[], None], loop: Loop) -> None:
    """Look at the files again and again, until cancelled; call `looked` after each look."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        with loop.turn():
            certificate.reload_if_changed()
            looked()


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _verify_clients(context: ssl.SSLContext, clients: ClientAuthorities) -> None:
    """Accept certificates of clients that these authorities signed. Raises SettingsError."""
    context.verify_mode = _MODES[clients.mode]
    # A session that is resumed is not verified again: its certificate may have expired. TLS 1.3 has no sessions
    # without tickets. TLS 1.2 keeps them in memory too, and Python's ssl can't turn that off.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    try:
        context.load_verify_locations(clients.file)
        has_revocations = _REVOCATION_LIST in clients.file.read_bytes()
    except OSError as error:  # of ssl too
        raise SettingsError(f"INGEST_TLS_CLIENT_CA={clients.file} can't be used: {error}") from error
    if not context.cert_store_stats()["x509_ca"]:
        raise SettingsError(f"INGEST_TLS_CLIENT_CA={clients.file} has no certificate of an authority (CA:TRUE)")
    if has_revocations:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    # An encrypted key would ask for its password at the terminal.
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except OSError as error:  # of ssl too
        files = f"INGEST_TLS_CERT={cert}" + (f" with INGEST_TLS_KEY={key}" if key is not None else "")
        raise SettingsError(f"{files} can't be used: {error}") from error


def _no_password() -> str:
    raise SettingsError("the key of INGEST_TLS_KEY has a password: store it without one, readable by ingest only")
