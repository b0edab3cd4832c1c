"""Certificates of clients: which connections are refused and why, and whose account a connection is."""

import asyncio
import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from checks.testbed.client_certificates import Clients, client_context
from checks.testbed.waiting import WAIT_SECONDS_MAX
from ingest.accounts import Accounts, Client
from ingest.client_certificate import client_certificate
from ingest.errors import UnauthorizedError
from ingest.keys import KeyRing
from ingest.server import refuse_public
from ingest.tls import Certificate, ClientAuthorities, certificate_of, follow
from pipeline.account import account_named
from pipeline.clock import ManualClock
from pipeline.errors import SettingsError
from pipeline.keys import ApiKey, digest_of, make_key
from pipeline.loops import Loops
from pipeline.names import LoopName, ProtocolName, TlsRefusal
from pipeline.settings import Settings

HOUR = datetime.timedelta(hours=1)
EVENTS = ProtocolName.EVENTS
KEY, KEY_ID = make_key()


def shake(
    client_side: ssl.SSLContext, server_side: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject, Exception | None]:
    """Both ends of a connection, and the error of the client."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname="127.0.0.1", session=session)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    error: Exception | None = None
    for _ in range(10):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as failed:
                error = error or failed
    try:
        client.read(1)
    except ssl.SSLWantReadError:
        pass
    except ssl.SSLError as failed:
        error = failed
    return client, server, error


def test_a_defect_does_not_end_the_look_for_new_files(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given files whose first look fails in a way that nobody has thought of, and connections likewise
    monkeypatch.setattr("ingest.tls.LOOK_SECONDS", 0.0)
    clock, looks = ManualClock(), iter([KeyError("a"), False, True, True])
    ends = iter([ZeroDivisionError(), None])
    loops = Loops(clock)

    class Files:
        def reload_if_changed(self) -> bool:
            return bool(_next_of(looks))

    async def run() -> None:
        done = asyncio.Event()
        looked: list[int] = []

        def look() -> None:
            looked.append(1)
            if len(looked) == 3:
                done.set()
            _next_of(ends)

        following = asyncio.create_task(follow(Files(), look, loops.add(LoopName.CERTIFICATE)))  # type: ignore[arg-type]
        await asyncio.wait_for(done.wait(), WAIT_SECONDS_MAX)
        following.cancel()

    # Then it looks again, and each failure is counted
    asyncio.run(run())
    assert loops.failures() == {LoopName.CERTIFICATE: 2}


def _next_of(outcomes: Iterator[object]) -> object:
    """The next outcome; raises it if it is an error."""
    outcome = next(outcomes, None)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class Rig:
    """Handshakes in memory between a client and the contexts of ingest."""

    def __init__(self, folder: Path, mode: str = "required") -> None:
        self.own, self.clients = Clients(folder, "own"), Clients(folder)
        self.file = folder / "authorities.pem"
        self.file.write_bytes(self.clients.ca.read_bytes())
        self.refused: list[TlsRefusal] = []
        self.certificate = Certificate(
            self.own.server(), None, ClientAuthorities(self.file, mode), on_refused=self.refused.append
        )

    def change(self, content: bytes) -> bool:
        """Put another content in place, as a tool that renews it does."""
        made = self.file.with_suffix(".new")
        made.write_bytes(content)
        made.replace(self.file)
        return self.certificate.reload_if_changed()

    def connect(
        self, certificate: Path | None, context: ssl.SSLContext | None = None
    ) -> tuple[ssl.SSLObject, Exception | None]:
        """The server's end of a connection, and the error of the client."""
        client_side = client_context(self.own.ca, certificate)
        _, server, error = shake(client_side, context or self.certificate.context)
        return server, error

    def name(self, certificate: Path | None) -> str | None:
        server, error = self.connect(certificate)
        assert error is None
        found = client_certificate(server.getpeercert())
        return None if found is None else found.name


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_a_verified_certificate_is_accepted_and_others_are_refused_and_counted(tmp_path: Path, mode: str) -> None:
    rig = Rig(tmp_path, mode)
    server, error = rig.connect(rig.clients.issue("shop"))
    assert error is None
    assert client_certificate(server.getpeercert()) is not None
    assert rig.refused == []
    # When others come
    for certificate, reason in [
        (rig.clients.issue("old", valid=-HOUR), TlsRefusal.EXPIRED),
        (Clients(tmp_path, "strangers").issue("shop"), TlsRefusal.UNKNOWN_CA),
        (rig.clients.issue("a-server", is_server=True), TlsRefusal.INVALID),
    ]:
        server, error = rig.connect(certificate)
        assert isinstance(error, ssl.SSLError), reason
        assert rig.refused == [reason]
        rig.refused.clear()
    # And one without a certificate, who gets an alert that says so where a certificate is required
    server, error = rig.connect(None)
    if mode == "required":
        assert rig.refused == [TlsRefusal.MISSING]
        assert "CERTIFICATE_REQUIRED" in str(error)
    else:
        assert error is None
        assert client_certificate(server.getpeercert()) is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_never_resumed_since_nothing_would_be_verified(tmp_path: Path, version: ssl.TLSVersion) -> None:
    rig = Rig(tmp_path)
    shop = client_context(rig.own.ca, rig.clients.issue("shop"))
    shop.maximum_version = version
    resumed = []
    for context in (rig.certificate.operator_context, rig.certificate.context):
        # Both ends of the first one are kept: OpenSSL forgets the session of an end that is dropped while it is open
        first = shake(shop, context)
        session = None if first[2] is not None else first[0].session
        second = shake(shop, context, session)
        resumed.append(second[0].session_reused)
    # A client resumes its session where nobody is verified, and nowhere else
    assert resumed == [True, False]
    # With TLS 1.2 there is no connection at all, and this is no refusal of a certificate
    assert (second[2] is None) == (version is ssl.TLSVersion.TLSv1_3)
    assert rig.refused == []


def test_operators_need_no_certificate(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    server, error = rig.connect(None, rig.certificate.operator_context)
    assert error is None
    assert rig.refused == []
    assert client_certificate(server.getpeercert()) is None


def test_a_revoked_certificate_is_refused_after_the_file_has_changed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    shop, other = rig.clients.issue("shop"), rig.clients.issue("other")
    before, error = rig.connect(shop)
    assert error is None
    # When the list of revoked certificates comes into the file
    rig.clients.revoke("shop")
    assert rig.change(rig.clients.ca.read_bytes() + rig.clients.revocations())
    _, error = rig.connect(shop)
    assert isinstance(error, ssl.SSLError)
    assert rig.refused == [TlsRefusal.REVOKED]
    after, error = rig.connect(other)
    assert error is None
    # Then the connection of before is known as one that was verified by former files
    assert not rig.certificate.is_newest(before)
    assert rig.certificate.is_newest(after)
    # And a list that has expired, or that is missing for an authority, refuses all of its clients
    rig.refused.clear()
    rig.change(rig.clients.ca.read_bytes() + rig.clients.revocations(valid=-HOUR))
    rig.connect(other)
    second = Clients(tmp_path, "second")
    rig.change(rig.clients.ca.read_bytes() + rig.clients.revocations() + second.ca.read_bytes())
    rig.connect(second.issue("third"))
    assert rig.refused == [TlsRefusal.REVOCATIONS, TlsRefusal.REVOCATIONS]


def test_an_authority_that_is_taken_out_of_the_file_is_forgotten(tmp_path: Path) -> None:
    rig, second = Rig(tmp_path), Clients(tmp_path, "second")
    shop = rig.clients.issue("shop")
    assert rig.change(second.ca.read_bytes())
    _, error = rig.connect(shop)
    assert isinstance(error, ssl.SSLError)
    assert rig.refused == [TlsRefusal.UNKNOWN_CA]
    # And a file that can't be used changes nothing
    for content in (b"", b"nothing", second.issue("client").read_bytes()):
        assert not rig.change(content)
    _, error = rig.connect(second.issue("shop"))
    assert error is None


@pytest.mark.parametrize("content", [None, b"", b"nothing"])
def test_authorities_that_cannot_be_read_are_named_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_bytes(content)
    settings = Settings(
        ingest_tls_cert=str(Clients(tmp_path).server()), ingest_tls_client="optional", ingest_tls_client_ca=str(file)
    )
    with pytest.raises(SettingsError, match=r"INGEST_TLS_CLIENT_CA=.*authorities\.pem"):
        certificate_of(settings)


@pytest.mark.parametrize(
    ("alternatives", "name"),
    [
        ([], "shop"),
        ([x509.DNSName("*.example"), x509.DNSName("shop.example")], "shop.example"),
        (
            [x509.DNSName("shop.example"), x509.UniformResourceIdentifier("spiffe://c/ns/x/sa/y")],
            "spiffe://c/ns/x/sa/y",
        ),
        ([x509.UniformResourceIdentifier("spiffe://c/a,b\nkey:other")], "shop"),
        ([x509.UniformResourceIdentifier("x" * 128)], "shop"),
        ([x509.RFC822Name("ann@shop.example")], "shop"),
    ],
)
def test_the_name_is_the_first_that_can_be_an_account(
    tmp_path: Path, alternatives: list[x509.GeneralName], name: str
) -> None:
    rig = Rig(tmp_path)
    assert rig.name(rig.clients.issue("shop", alternatives)) == name


@pytest.mark.parametrize("common_name", ["Shop & Co", "a\r\nb", "a\n", "-x", "é", "x" * 128, ""])
def test_a_common_name_that_cannot_be_an_account_is_none(common_name: str) -> None:
    found = client_certificate(_peer(common_name))
    assert found is not None
    assert found.name is None


def _peer(common_name: str) -> dict[str, Any]:
    return {"subject": ((("commonName", common_name),),), "notAfter": "Nov 27 10:00:00 2036 GMT"}


def test_operators_name_the_account_of_a_certificate() -> None:
    assert account_named("cert:spiffe://c/ns/x/sa/y") == "cert:spiffe://c/ns/x/sa/y"
    assert account_named("cert:") is None
    assert account_named("cert:a b") is None


def is_known(client: Client) -> bool:
    """Whether the next request may pass without a look at its head."""
    return client.recent is not None


def keys(**changes: Any) -> tuple[KeyRing, Accounts]:
    clock = ManualClock()
    ring = KeyRing(clock, or_certificate=changes.get("ingest_tls_client_as_key", False))
    ring.note([ApiKey(KEY_ID, "shop", digest_of(KEY), (), None, "ann@host", "a test", 5.0)], clock.now())
    settings = Settings(
        ingest_keys=True, ingest_tls_cert="x", ingest_tls_client="optional", ingest_tls_client_ca="x", **changes
    )
    return ring, Accounts(settings, clock, ring)


def test_without_keys_the_certificate_is_the_account_and_no_header_field_is() -> None:
    accounts = Accounts(Settings(), ManualClock())
    client = accounts.client("192.0.2.1", "shop.example")
    assert client.tally is not None
    assert client.tally.account == "cert:shop.example"
    assert client.tally_of("198.51.100.1") is client.tally
    plain = accounts.client("192.0.2.1").tally
    assert plain is not None
    assert plain.account == "192.0.2.1"


def test_the_certificate_of_a_trusted_proxy_is_not_that_of_its_clients() -> None:
    accounts = Accounts(Settings(trusted_proxies="192.0.2.1"), ManualClock())
    client = accounts.client("192.0.2.1", "proxy")
    assert client.tally is None
    assert client.tally_of("198.51.100.1").account == "198.51.100.1"
    # And it stands for no key
    _, accounts = keys(ingest_tls_client_as_key=True, trusted_proxies="192.0.2.1")
    with pytest.raises(UnauthorizedError):
        accounts.client("192.0.2.1", "proxy").tally_of_key(None, None, EVENTS)


def test_a_certificate_stands_for_a_key_only_if_the_setting_says_so() -> None:
    _, accounts = keys()
    client = accounts.client("192.0.2.1", "shop.example")
    with pytest.raises(UnauthorizedError, match=r"needs an API key$"):
        client.tally_of_key(None, None, EVENTS)
    assert not is_known(client)
    assert client.tally_of_key(KEY, None, EVENTS).account == "key:shop"
    # With it
    ring, accounts = keys(ingest_tls_client_as_key=True)
    client = accounts.client("192.0.2.1", "shop.example")
    assert client.tally_of_key(None, None, EVENTS).account == "cert:shop.example"
    assert is_known(client)
    # But a key that is sent decides: one that was revoked is not replaced by the certificate
    with pytest.raises(UnauthorizedError, match="not valid"):
        client.tally_of_key(None, "Bearer slc_00000000_0", EVENTS)
    assert not is_known(client)
    assert client.tally_of_key(None, f"Bearer {KEY}", EVENTS).account == "key:shop"
    assert client.tally_of_key(None, None, EVENTS).account == "cert:shop.example"
    # And keys that change ask again
    ring.note([], 0.0)
    assert not is_known(client)
    assert client.tally_of_key(None, None, EVENTS).account == "cert:shop.example"
    # And without a certificate, or with one whose name can't be used, the error says what each needs
    for other in (accounts.client("192.0.2.1"), accounts.client("192.0.2.1", None)):
        with pytest.raises(UnauthorizedError) as refusal:
            other.tally_of_key(None, None, EVENTS)
        assert str(refusal.value) == (
            "this request needs an API key, or its connection a client's certificate with a name that can be an account"
        )


def test_while_keys_are_unknown_a_certificate_still_stands_for_one() -> None:
    clock = ManualClock()
    settings = Settings(
        ingest_keys=True, ingest_tls_cert="x", ingest_tls_client="optional", ingest_tls_client_ca="x",
        ingest_tls_client_as_key=True,
    )  # fmt: skip
    accounts = Accounts(settings, clock, KeyRing(clock, or_certificate=True))
    assert accounts.client("192.0.2.1", "shop").tally_of_key(None, None, EVENTS).account == "cert:shop"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ingest_tls_client_ca": "x"}, "INGEST_TLS_CLIENT_CA needs INGEST_TLS_CLIENT=optional or required"),
        ({"ingest_tls_client_as_key": True, "ingest_keys": True}, "INGEST_TLS_CLIENT_AS_KEY needs INGEST_TLS_CLIENT="),
        (
            {"ingest_tls_client": "optional"},
            "INGEST_TLS_CLIENT=optional needs INGEST_TLS_CERT and INGEST_TLS_CLIENT_CA",
        ),
        (
            {"ingest_tls_client": "required", "ingest_tls_cert": "x", "ingest_tls_client_ca": "x"},
            "INGEST_TLS_CLIENT=required needs OPERATOR_PORT",
        ),
        (
            {
                "ingest_tls_client": "optional", "ingest_tls_cert": "x", "ingest_tls_client_ca": "x",
                "ingest_tls_client_as_key": True,
            },
            "INGEST_TLS_CLIENT_AS_KEY needs INGEST_KEYS=yes",
        ),
        ({"ingest_tls_client": "maybe"}, "is none of off, optional, required"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        Settings(**changes)


def test_a_public_address_is_accepted_where_certificates_are_required() -> None:
    with_tls: dict[str, Any] = {
        "ingest_host": "0.0.0.0", "operator_port": 8081, "ingest_tls_cert": "x", "ingest_tls_client_ca": "x",
    }  # fmt: skip
    refuse_public(Settings(**with_tls, ingest_tls_client="required"))
    with pytest.raises(SettingsError, match=r"INGEST_TLS_CLIENT=required .docs/client-certificates\.md."):
        refuse_public(Settings(**with_tls, ingest_tls_client="optional"))
