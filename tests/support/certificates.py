"""Certificates for servers and clients of the tests, made by openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[member]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
"""


def openssl_problem() -> str | None:
    """Why no certificates can be made here; None if they can."""
    return None if shutil.which("openssl") else "there is no openssl on the PATH"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in PEM files, and both in one file."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """A CA of its own, whose certificate is in the file `ca`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._config = folder / "openssl.cnf"
        self._config.write_text(_CONFIG)
        self.ca = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._make("-keyout", self._key, "-out", self.ca, "-subj", f"/CN={name}", "-extensions", "authority")

    def issue(self, name: str, alternatives: str = "IP:127.0.0.1") -> Certificate:
        """A certificate of CN=`name` for these names and addresses."""
        made = Certificate(*(self.folder / f"{name}.{ending}" for ending in ("pem", "key", "both.pem")))
        self._make(
            *("-keyout", made.key, "-out", made.certificate, "-subj", f"/CN={name}", "-extensions", "member"),
            *("-addext", f"subjectAltName={alternatives}", "-CA", self.ca, "-CAkey", self._key),
        )
        made.both.write_text(made.key.read_text() + made.certificate.read_text())
        return made

    def _make(self, *options: str | Path) -> None:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-days", "30", "-config", str(self._config)),
                *map(str, options),
            ],
            check=True,
            capture_output=True,
        )
