"""TLS of a client: the files that the settings of one kind of server name, and what a failed handshake means."""

import ssl
from dataclasses import dataclass
from typing import Final

# OpenSSL's codes for a certificate that is valid, but for another host name or address.
_OTHER_HOST: Final = frozenset({62, 64})
_NOT_YET_VALID, _EXPIRED = 9, 10
# OpenSSL's reasons, as parts of their names. The other side sends no TLS, or a server that expects none hangs up:
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
# The connection ended. Before Python 3.11.4, a hang-up in a handshake is called a proper end.
_ENDED: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
# The server wants a certificate of the client, or does not accept the one it got.
_CLIENT_REFUSED: Final = (
    "CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_HANDSHAKE_FAILURE",
    "ALERT_UNKNOWN_CA",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_EXPIRED",
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM form, "" for none. `server` begins the names of their settings: KAFKA for KAFKA_CA_FILE."""

    server: str
    ca: str
    certificate: str
    key: str

    def context(self) -> ssl.SSLContext:
        """A context that checks the server's certificate and host name.

        Raises ValueError if a file can't be used; the message names its setting.
        """
        if self.key and not self.certificate:
            raise ValueError(f"{self.server}_KEY_FILE is set, and {self.server}_CERT_FILE is not")
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except OSError as error:
            raise ValueError(f"{self.server}_CA_FILE={self.ca!r} has no certificate: {_reason(error)}") from error
        if self.certificate:
            self._present(context)
        return context

    def _present(self, context: ssl.SSLContext) -> None:
        """Let the client present its certificate; its key may be in the same file."""
        names = f"{self.server}_CERT_FILE={self.certificate!r}"
        if self.key:
            names += f" with {self.server}_KEY_FILE={self.key!r}"
        try:
            context.load_cert_chain(self.certificate, self.key or None, password=_refuse_passphrase)
        except OSError as error:
            raise ValueError(f"{names} can't be used: {_reason(error)}") from error
        except _EncryptedKeyError:
            raise ValueError(f"{names} can't be used: the key needs a passphrase; use a key without one") from None

    def explain(self, error: BaseException | None, host: str, *, in_handshake: bool = True) -> str | None:
        """What an error means for a connection to `host`, and what to do; None if it is no problem of the settings.

        `host` is "" if others name it, such as a sentinel.
        A server reports a client's certificate with its first data, so after the handshake.
        """
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._explain_certificate(error, host)
        if not isinstance(error, ssl.SSLError):
            return None
        reason = error.reason or ""
        if any(part in reason for part in _CLIENT_REFUSED):
            return (
                f"it refuses this client's certificate, or wants one ({_reason(error)}): see {self.server}_CERT_FILE "
                f"and {self.server}_KEY_FILE"
            )
        if not in_handshake:
            return self._explain_end(error)
        if isinstance(error, _ENDED) or any(part in reason for part in _NO_TLS):
            return f"it does not speak TLS there ({_reason(error)}): use its port for TLS, or a URL without TLS"
        return f"TLS fails: {_reason(error)}"

    def _explain_end(self, error: ssl.SSLError) -> str | None:
        """A server that misses a certificate may close the connection before its reason was read."""
        if self.certificate or not isinstance(error, _ENDED):
            return None
        return (
            "it closed the connection; if it always does, it wants a client's certificate: see "
            f"{self.server}_CERT_FILE and {self.server}_KEY_FILE"
        )

    def _explain_certificate(self, error: ssl.SSLCertVerificationError, host: str) -> str:
        if error.verify_code in _OTHER_HOST:
            asked = repr(host) if host else f"the address that its sentinels name ({error.verify_message})"
            return f"its certificate is not valid for {asked}: connect to a name that is in the certificate"
        if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
            return f"{error.verify_message}: renew the server's certificate, or correct this host's clock"
        known = f"{self.server}_CA_FILE={self.ca}" if self.ca else "the CAs of this machine"
        return (
            f"its certificate is not signed by {known} ({error.verify_message}): "
            f"{self.server}_CA_FILE must name the CA's file"
        )


class _EncryptedKeyError(Exception):
    """A private key is encrypted."""


def _refuse_passphrase() -> str:
    """OpenSSL would ask for the passphrase on the terminal."""
    raise _EncryptedKeyError


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it closed the connection").lower().replace("_", " ")
    return error.strerror or type(error).__name__
