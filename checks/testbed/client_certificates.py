"""An authority for clients' certificates, which also makes expired ones and revokes some."""

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_HOUR = datetime.timedelta(hours=1)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass
class Clients:
    """An authority; `ca` is its certificate, and `file` the path of the file that a test writes for ingest."""

    folder: Path
    name: str = "clients"
    revoked: list[x509.RevokedCertificate] = field(default_factory=list)
    _serials: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        made = (
            self._builder(self._subject, self._key.public_key(), _HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False,
                    key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        self.ca = self.folder / f"{self.name}-ca.pem"
        self.ca.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, valid: datetime.timedelta
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - 24 * _HOUR)
            .not_valid_after(_now() + valid)
        )

    def issue(
        self,
        name: str,
        alternatives: Sequence[x509.GeneralName] = (),
        *,
        valid: datetime.timedelta = _HOUR,
        is_server: bool = False,
    ) -> Path:
        """A file with the key and the certificate of CN=`name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._builder(subject, key.public_key(), valid).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        self._serials[name] = made.serial_number
        path = self.folder / f"{self.name}-{name.replace('/', '_')}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + made.public_bytes(serialization.Encoding.PEM)
        )
        return path

    def server(self) -> Path:
        """A certificate for 127.0.0.1, with its key."""
        return self.issue("ingest", [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], is_server=True)

    def revoke(self, name: str) -> None:
        builder = x509.RevokedCertificateBuilder().serial_number(self._serials[name]).revocation_date(_now() - _HOUR)
        self.revoked.append(builder.build())

    def revocations(self, *, valid: datetime.timedelta = _HOUR) -> bytes:
        """The list of revoked certificates."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._subject)
        builder = builder.last_update(_now() - 24 * _HOUR).next_update(_now() + valid)
        for one in self.revoked:
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def client_context(authority: Path, certificate: Path | None) -> ssl.SSLContext:
    """The TLS of a careful client."""
    context = ssl.create_default_context(cafile=str(authority))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context
