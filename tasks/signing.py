"""Signed messages of Celery, and `python -m tasks.signing create|list`: the keys for them.

With SIGNING_KEY_FILE, SIGNING_CERT_FILE and SIGNING_CERT_FOLDER a process signs its tasks, remote commands and answers,
and accepts only those that a certificate in the folder has signed. `create` makes a key and puts its certificate into
the folder; a certificate that is removed from the folder is no longer valid after a restart.
"""

import argparse
import datetime
import os
import sys
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from celery.exceptions import ImproperlyConfigured, SecurityError
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.pidbox import Mailbox, Node
from kombu.serialization import disable_insecure_serializers, register

from pipeline.clock import Clock, SystemClock
from pipeline.errors import SettingsError
from pipeline.names import DropReason
from pipeline.settings import Settings
from pipeline.text import on_one_line
from tasks.dropped import note_dropped

SERIALIZER: Final = "auth"  # Celery's name
_CONTENT_TYPE: Final = "application/data"  # likewise
REFUSED: Final = "refused"  # key in the answer of a worker that takes a command for a repeated one
# Argument of every signed remote command: when it was sent, to which system, and a number that no other has.
SENT: Final = "sent"
ANSWERS: Final = "answers"  # key in every signed answer: the ticket of the command that it answers
COMMAND_SECONDS_MAX: Final = 60.0  # between the sender's clock and the receiver's; an older command is a repeated one
_FUTURE: Final = 2 * COMMAND_SECONDS_MAX  # a sender's clock may be ahead: so long a command could be repeated
_KEY_BITS: Final = 2048  # a signature takes 0.7 ms; with 3072 bits, 2 ms
_DAYS: Final = 3650  # a certificate ends by being removed from the folder; an expired one stops everything at once
_DAYS_MAX: Final = 36_500
_DAYS_LEFT_MIN: Final = 30
_NAME_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def is_on(settings: Settings) -> bool:
    """Whether messages are signed."""
    return bool(settings.signing_key_file)


def settings_of(app: Any) -> Settings:
    """The settings of an application of Sluice."""
    settings: Settings = app.sluice_settings
    return settings


def celery_settings(settings: Settings) -> dict[str, Any]:
    """The changes to Celery's configuration for signed messages."""
    return {"task_serializer": SERIALIZER, "accept_content": [SERIALIZER]} if is_on(settings) else {}


def set_up(settings: Settings) -> None:
    """Sign and verify from now on, in this process and its children. Raises SettingsError if a file can't be used.

    As Celery's setup_security, which refuses to start as soon as one of the trusted certificates has expired.
    """
    if not is_on(settings):
        return
    serializer = load(settings)
    register(
        SERIALIZER, serializer.serialize, serializer.deserialize, content_type=_CONTENT_TYPE, content_encoding="utf-8"
    )
    disable_insecure_serializers(allowed=[SERIALIZER])


def load(settings: Settings) -> Any:
    """Celery's serializer with the key and the certificates. Raises SettingsError if a file can't be used."""
    try:
        from celery.security.certificate import CertStore  # noqa: PLC0415 - they need `cryptography`
        from celery.security.key import PrivateKey  # noqa: PLC0415
        from celery.security.serialization import SecureSerializer  # noqa: PLC0415

        own = _certificate(f"SIGNING_CERT_FILE={settings.signing_cert_file!r}", settings.signing_cert_file)
        key_file = settings.signing_key_file
        key: Any = PrivateKey(_text(f"SIGNING_KEY_FILE={key_file!r}", key_file))
        if key._key.public_key().public_numbers() != own.get_pubkey().public_numbers():
            raise SettingsError("SIGNING_KEY_FILE is not the key of SIGNING_CERT_FILE")
        if own.has_expired():
            raise SettingsError("SIGNING_CERT_FILE has expired: make another key")
        trusted = CertStore()
        for path in _files(settings.signing_cert_folder):
            one = _certificate(f"SIGNING_CERT_FOLDER: {str(path)!r}", str(path))
            trusted.add_cert(one)
            if one.has_expired():  # what it signed is refused, here and by those who check
                sys.stderr.write(f"celery: the certificate {path} has expired\n")
        if own.get_id() not in {one.get_id() for one in trusted.itercerts()}:
            raise SettingsError(
                "SIGNING_CERT_FILE is not in SIGNING_CERT_FOLDER: no process would accept what this one signs"
            )
    except (SecurityError, ImproperlyConfigured, ImportError, OSError, TypeError, ValueError) as error:
        raise SettingsError(f"messages can't be signed: {' '.join(str(error).split())}") from error
    left = days_left(own)
    if left < _DAYS_LEFT_MIN:
        sys.stderr.write(f"celery: the certificate SIGNING_CERT_FILE expires in {left} days\n")
    return SecureSerializer(key, own, trusted)


def _files(folder: str) -> list[Path]:
    """The files of a folder, without those whose names begin with a dot."""
    if not Path(folder).is_dir():
        raise SettingsError(f"SIGNING_CERT_FOLDER={folder!r} is no folder")
    return [path for path in sorted(Path(folder).iterdir()) if not path.name.startswith(".")]


def _certificate(label: str, path: str) -> Any:
    from celery.security.certificate import Certificate  # noqa: PLC0415

    text = _text(label, path)
    try:
        return Certificate(text)
    except SecurityError as error:
        raise SettingsError(f"{label} is no certificate with an RSA key") from error


def days_left(certificate: Any) -> int:
    """Days until a certificate expires."""
    end: datetime.datetime = certificate._cert.not_valid_after_utc
    return (end - _now()).days


def _now() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(SystemClock().now(), datetime.UTC)


def _text(label: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no PEM file"
        raise SettingsError(f"{label} can't be read: {what}") from error


def reason_of(error: Exception, settings: Settings) -> DropReason:
    """Why a message that can't be read is dropped."""
    is_unsigned = is_on(settings) and isinstance(error, ContentDisallowed | DecodeError)
    return DropReason.UNSIGNED if is_unsigned else DropReason.MALFORMED


# --- Remote commands --------------------------------------------------------------------------------------------------


def stamped(arguments: dict[str, Any] | None, settings: Settings) -> dict[str, Any]:
    """The arguments of a remote command, with what makes it a command of its own if it is signed."""
    if not is_on(settings):
        return arguments or {}
    sent = {"at": SystemClock().now(), "id": uuid.uuid4().hex, "prefix": settings.key_prefix}
    return {**(arguments or {}), SENT: sent}


@dataclass
class Freshness:
    """Which commands a worker has seen lately: a signed command is valid once, in one system."""

    clock: Clock = field(default_factory=SystemClock)
    _seen: dict[str, float] = field(default_factory=dict)  # id -> when it was seen, monotonic

    def problem(self, sent: Any, key_prefix: str) -> str | None:
        """Why a command is not carried out; None if it is new, and for the system with this KEY_PREFIX."""
        try:
            age, number, prefix = self.clock.now() - float(sent["at"]), str(sent["id"]), str(sent["prefix"])
        except (TypeError, KeyError, ValueError):
            return "it does not say when and to which system it was sent"
        if prefix != key_prefix:
            return f"it was sent to the system with KEY_PREFIX={prefix!r}, and this one has {key_prefix!r}"
        if not abs(age) <= COMMAND_SECONDS_MAX:
            return f"it was sent {age:.0f} s ago, by the clock of its sender: it is repeated, or a clock is wrong"
        now = self.clock.monotonic()
        self._seen = {one: at for one, at in self._seen.items() if now - at < _FUTURE}
        if number in self._seen:
            return "it was carried out before"
        self._seen[number] = now
        return None


def _on_one_line(given: Any) -> Any:
    """An argument with each control character in its texts as an escape: names and reasons are shown in terminals."""
    match given:
        case str():
            return on_one_line(given)
        case list():
            return [_on_one_line(one) for one in given]
        case dict():
            return {name: _on_one_line(one) for name, one in given.items()}
        case _:
            return given


class SluiceNode(Node):
    """A worker's mailbox. Where messages are signed, it carries out each command once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._freshness = Freshness()

    @property
    def _app(self) -> Any:
        state: Any = self.state
        return state.app

    def handle(self, method: str, arguments: dict[str, Any] | None = None) -> Any:
        """Carry out a command."""
        arguments = dict(arguments or {})
        sent = arguments.pop(SENT, None)
        settings = settings_of(self._app)
        problem = self._freshness.problem(sent, settings.key_prefix) if is_on(settings) else None
        if problem is not None:
            note_dropped(DropReason.REPEATED, f"the remote command {method}: {problem}")
            return {"error": f"refused: {problem}", REFUSED: True}
        return super().handle(method, _on_one_line(arguments))


class SluiceMailbox(Mailbox):
    """Celery's mailboxes, with the node above.

    Where messages are signed, an answer counts for one command only. Kombu has the ticket in a header, which is not
    signed: so a recorded answer would count for any later command.
    """

    node_cls = SluiceNode

    @property
    def _is_signed(self) -> bool:
        return self.serializer == SERIALIZER

    def _publish_reply(self, reply: Any, exchange: Any, routing_key: str, ticket: str, *args: Any, **opts: Any) -> None:
        """Send an answer."""
        if self._is_signed:
            reply = {**reply, ANSWERS: ticket}
        super()._publish_reply(reply, exchange, routing_key, ticket, *args, **opts)

    def _collect(
        self, ticket: str, limit: Any = None, timeout: float = 1, callback: Any = None, *args: Any, **options: Any
    ) -> Any:
        """Wait for answers, and return them."""
        if not self._is_signed:
            return super()._collect(ticket, limit, timeout, callback, *args, **options)
        found: list[dict[str, Any]] = []

        def take(reply: dict[str, Any]) -> None:
            if reply.pop(ANSWERS, None) == ticket:
                found.append(reply)
                if callback is not None:
                    callback(reply)

        collected: Any = super()._collect(ticket, limit, timeout, take, *args, **options)
        if isinstance(collected, deque):  # they came while another command was waited for, and were not taken yet
            for reply in collected:
                take(reply)
        return found


# --- The command ------------------------------------------------------------------------------------------------------


def create(name: str, folder: Path, *, days: int = _DAYS) -> tuple[Path, Path]:
    """Make folder/NAME.key and folder/trusted/NAME.crt; returns both. Raises OSError if one of them exists."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = _now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # hosts' clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    trusted = folder / "trusted"
    trusted.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.key", trusted / f"{name}.crt"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, text, mode in zip(
        paths, (secret, certificate.public_bytes(serialization.Encoding.PEM)), (0o600, 0o644), strict=True
    ):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(text)
    return paths


def _listed(folder: Path) -> list[str]:
    trusted = folder / "trusted"
    if not trusted.is_dir():
        raise SettingsError(
            f"{trusted} is no folder: `python -m tasks.signing create NAME {folder}` makes it with a key"
        )
    found = []
    for path in _files(str(trusted)):
        certificate = _certificate(repr(str(path)), str(path))
        found.append(f"{path.name}: expires in {days_left(certificate)} days, {certificate.get_id()}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.signing", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    make = commands.add_parser("create", help="make a key, and a certificate that is trusted")
    make.add_argument("name", help="letters, digits, dots, hyphens and underscores; as `worker` or `ann`")
    make.add_argument("folder", type=Path)
    make.add_argument("--days", type=int, default=_DAYS, help=f"until it expires; {_DAYS} if it is left out")
    listing = commands.add_parser("list", help="show the trusted certificates")
    listing.add_argument("folder", type=Path)
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "list":
            sys.stdout.write("".join(f"{line}\n" for line in _listed(asked.folder)))
            return 0
        if not asked.name or not _NAME_CHARS.issuperset(asked.name) or not 1 <= asked.days <= _DAYS_MAX:
            parser.error(f"a name has letters, digits, dots, hyphens and underscores, and --days is 1 to {_DAYS_MAX}")
        key, certificate = create(asked.name, asked.folder, days=asked.days)
    except OSError as error:
        more = ": no key is overwritten: use another name" if isinstance(error, FileExistsError) else ""
        sys.stderr.write(f"signing: {error.filename}: {error.strerror}{more}\n")
        return 1
    except (SettingsError, ValueError, SecurityError, ImportError) as error:
        sys.stderr.write(f"signing: {error}\n")
        return 1
    sys.stdout.write(
        f"SIGNING_KEY_FILE={key.resolve()}\nSIGNING_CERT_FILE={certificate.resolve()}\n"
        f"SIGNING_CERT_FOLDER={certificate.parent.resolve()}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
