"""HTTPS at ingest: the certificate of the listening socket, which is read again when its files change."""

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.errors import SettingsError
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0  # between two looks whether the files have changed
Stamp = tuple[tuple[int, int, int], ...]  # of each file: inode, time of change (ns), size; zeros: it is not there


@dataclass(slots=True)
class Certificate:
    """The certificate and key of INGEST_TLS_CERT and INGEST_TLS_KEY, as a context for new connections.

    A new certificate is loaded into the same context: connections that are open keep the one that they began with.
    """

    cert: Path
    key: Path | None
    context: ssl.SSLContext = field(init=False)
    _loaded: Stamp = field(init=False)
    _refused: Stamp = field(init=False, default=())

    def __post_init__(self) -> None:
        self._loaded = self._stamp()
        self.context = self._read()

    def reload_if_changed(self) -> bool:
        """Load the files if they have changed, and return whether a new certificate is in use.

        Files that can't be used change nothing; a line in the log says why.
        """
        stamp = self._stamp()
        if stamp in (self._loaded, self._refused):
            return False
        try:
            # A context of its own first: a certificate without its key would break the one that is in use.
            self._read()
            _load(self.context, self.cert, self.key)
        except SettingsError as error:
            self._refused = stamp  # files that change again are read again
            logger.warning(
                "the new certificate is not used, and the one before stays: %s",
                error,
                extra={"action": "certificate_refused"},
            )
            return False
        self._loaded, self._refused = stamp, ()
        logger.info("a new certificate is in use: %s", self.cert, extra={"action": "certificate_loaded"})
        return True

    def _read(self) -> ssl.SSLContext:
        """A context from the files. Raises SettingsError if one can't be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        _load(context, self.cert, self.key)
        return context

    def _stamp(self) -> Stamp:
        return tuple(_stamp_of(path) for path in (self.cert, self.key) if path is not None)


def certificate_of(settings: Settings) -> Certificate | None:
    """The certificate that the settings name; None: plain HTTP. Raises SettingsError if its files can't be used."""
    if not settings.ingest_tls_cert:
        return None
    return Certificate(
        Path(settings.ingest_tls_cert), Path(settings.ingest_tls_key) if settings.ingest_tls_key else None
    )


async def follow(certificate: Certificate) -> None:
    """Look at the files again and again, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        certificate.reload_if_changed()


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _load(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    # An encrypted key would ask for its password at the terminal.
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except OSError as error:  # of ssl too
        files = f"INGEST_TLS_CERT={cert}" + (f" with INGEST_TLS_KEY={key}" if key is not None else "")
        raise SettingsError(f"{files} can't be used: {error}") from error


def _no_password() -> str:
    raise SettingsError("the key of INGEST_TLS_KEY has a password: store it without one, readable by ingest only")
