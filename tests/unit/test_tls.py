"""What a failed handshake means, told by real ones between this process and itself."""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.tls import TlsFiles
from support.certificates import Authority, openssl_problem


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Authority:
    problem = openssl_problem()
    if problem:
        missing(problem)
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("server").both)
    context.load_verify_locations(authority.ca)
    return context


@contextlib.contextmanager
def accepting(serve: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def once() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    serve(connection)

        thread = threading.Thread(target=once)
        thread.start()
        yield server.getsockname()
        thread.join(WAIT_SECONDS_MAX)


def outcome(files: TlsFiles, serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> str | None:
    """What is told of a connection, None if a byte was received."""
    with accepting(serve) as address, socket.create_connection(address, 5) as plain:
        try:
            with files.context().wrap_socket(plain, server_hostname=host) as encrypted:
                try:
                    assert encrypted.recv(1) == b"x"
                except ssl.SSLError as error:
                    return files.explain(error, host, in_handshake=False)
        except ssl.SSLError as error:
            return files.explain(error, host)
    return None


def speaking(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            encrypted.sendall(b"x")
            encrypted.recv(1)

    return serve


def test_a_certificate_of_the_ca_is_accepted(authority: Authority, server_context: ssl.SSLContext) -> None:
    assert outcome(TlsFiles("KAFKA", str(authority.ca), "", ""), speaking(server_context)) is None


def test_another_ca_is_named(tmp_path: Path, server_context: ssl.SSLContext) -> None:
    other = Authority(tmp_path, "other").ca
    said = outcome(TlsFiles("KAFKA", str(other), "", ""), speaking(server_context))
    assert said is not None
    assert said.startswith(f"its certificate is not signed by KAFKA_CA_FILE={other} (")
    said = outcome(TlsFiles("REDIS", "", "", ""), speaking(server_context))
    assert said is not None
    assert "not signed by the CAs of this machine" in said
    assert said.endswith("REDIS_CA_FILE must name the CA's file")


def test_another_host_is_named(authority: Authority, server_context: ssl.SSLContext) -> None:
    files = TlsFiles("KAFKA", str(authority.ca), "", "")
    for host in ("db.example.org", "127.0.0.2"):
        said = outcome(files, speaking(server_context), host)
        assert said == f"its certificate is not valid for {host!r}: connect to a name that is in the certificate"


def test_a_certificate_whose_time_is_over_is_named() -> None:
    error = ssl.SSLCertVerificationError("x")
    error.verify_code, error.verify_message = 10, "certificate has expired"
    said = TlsFiles("KAFKA", "", "", "").explain(error, "h")
    assert said == "certificate has expired: renew the server's certificate, or correct this host's clock"


def test_a_server_without_tls_is_named(authority: Authority) -> None:
    files = TlsFiles("KAFKA", str(authority.ca), "", "")
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command\r\n", b""):

        def serve(connection: socket.socket, answer: bytes = answer) -> None:
            connection.recv(1 << 16)
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)

        said = outcome(files, serve)
        assert said is not None
        assert said.startswith("it does not speak TLS there (")


def test_a_server_that_wants_a_certificate_is_named(authority: Authority, server_context: ssl.SSLContext) -> None:
    server_context.verify_mode = ssl.CERT_REQUIRED
    try:
        client = authority.issue("client")
        said = outcome(TlsFiles("KAFKA", str(authority.ca), "", ""), speaking(server_context))
        assert said is not None
        assert said.startswith("it refuses this client's certificate, or wants one (")
        files = TlsFiles("KAFKA", str(authority.ca), str(client.certificate), str(client.key))
        assert outcome(files, speaking(server_context)) is None
    finally:
        server_context.verify_mode = ssl.CERT_NONE


def test_an_encrypted_key_is_refused_without_a_question(authority: Authority, tmp_path: Path) -> None:
    client = authority.issue("client2")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", client.key, "-out", locked, "-passout", "pass:hunter2"],
        check=True,
        capture_output=True,
    )
    files = TlsFiles("KAFKA", str(authority.ca), str(client.certificate), str(locked))
    with pytest.raises(ValueError, match="the key needs a passphrase; use a key without one") as raised:
        files.context()
    assert "KAFKA_KEY_FILE" in str(raised.value)


def test_other_errors_are_not_explained() -> None:
    files = TlsFiles("KAFKA", "", "client.pem", "")
    assert files.explain(TimeoutError("timed out"), "h") is None
    closed = ssl.SSLEOFError(8, "EOF occurred")
    closed.reason = "UNEXPECTED_EOF_WHILE_READING"
    assert files.explain(closed, "h", in_handshake=False) is None
    # But a server may close the connection because it got no certificate
    said = TlsFiles("KAFKA", "", "", "").explain(closed, "h", in_handshake=False)
    assert said is not None
    assert "if it always does, it wants a client's certificate: see KAFKA_CERT_FILE" in said
