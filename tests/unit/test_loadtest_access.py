"""How the load test reaches a system that is given: API key, TLS, and what it says where one of them is wrong."""

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from checks.loadgen.open_load import offer
from checks.loadtest.__main__ import main
from checks.loadtest.given import Access, NotThereError, access_of
from checks.loadtest.options import parse
from pipeline.errors import SettingsError
from support.certificates import Authority, openssl_problem

KEY = "slc_0badcafe_" + 24 * "5e"
HEALTH = b'{"rateLimit": 1000}'
ENVIRON = {"INGEST_KEY": KEY, "OPERATOR_URL": "", "OPERATOR_PASSWORD": ""}


class Keyed(socketserver.ThreadingTCPServer):
    """Tells its health, and takes events of one API key; over TLS if it has a certificate."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.tls = tls
        self.url = f"{'http' if tls is None else 'https'}://localhost:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, object]:
        request, address = super().get_request()
        if self.tls is not None:
            # Its own thread shakes hands with the first read, so that no client waits for another one.
            request = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, address


class _Answering(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while line := self.rfile.readline():
                head = b""
                while (field := self.rfile.readline()).strip():
                    head += field.lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
                self.rfile.read(int(length or 0))
                is_known = b"authorization: bearer " + KEY.encode() in head
                if line.startswith(b"GET"):
                    answer = b"200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(HEALTH), HEALTH)
                elif not is_known:
                    answer = b"401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
                else:
                    answer = b"202 Accepted\r\nContent-Length: 0\r\n\r\n"
                self.wfile.write(b"HTTP/1.1 " + answer)


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Keyed]:
    with Keyed(tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secured(missing: Callable[[str], None], request: pytest.FixtureRequest) -> Iterator[tuple[Keyed, Authority]]:
    """A server with a certificate for another name than that of the loopback address."""
    if (problem := openssl_problem()) is not None:
        missing(problem)
    authority: Authority = request.getfixturevalue("authority")
    issued = authority.issue("public", "DNS:ingest.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(issued.certificate, issued.key)
    with serving(tls) as server:
        yield server, authority


def access(*words: str, **environ: str) -> Access:
    return access_of(parse(words), {**ENVIRON, **environ})[0]


def test_the_key_and_tls_of_the_options_reach_the_system(secured: tuple[Keyed, Authority], tmp_path: Path) -> None:
    server, authority = secured
    (tmp_path / "key").write_text(f"{KEY}\n")
    given = access(
        "--url", server.url, "--ca-file", str(authority.ca), "--key-file", str(tmp_path / "key"), INGEST_KEY="slc_old"
    )
    given.check_events()
    with given.look("/api/logs/health") as answer:
        assert answer.read() == HEALTH
    # And the load has both
    host, port = given.place
    request = given.head(2) + b"[]"
    responses = uvloop.run(offer(host, port, [request], [(0.2, 50.0)], tls=given.events_tls))
    assert set(responses.status) == {202}
    assert not responses.unanswered


def test_a_certificate_of_another_ca_is_refused_and_gets_no_key(secured: tuple[Keyed, Authority]) -> None:
    server, _ = secured
    with pytest.raises(NotThereError, match="--ca-file must name the file of its CA"):
        access("--url", server.url).check_events()


@pytest.mark.parametrize(
    ("key", "says"), [("", "there is none: see --key-file"), ("slc_other", "does not know this one: see --key-file")]
)
def test_a_key_that_is_missing_or_wrong_is_said_before_any_load(
    key: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INGEST_KEY", key)
    with serving() as server:
        monkeypatch.setattr("sys.argv", ["load-test.sh", "--url", server.url])
        assert main() == 2
    said = capsys.readouterr()
    assert says in said.err
    assert "phases" not in said.out
    assert not key or key not in said.err


def test_the_key_is_in_no_repr() -> None:
    assert KEY not in repr(access("--url", "http://localhost:9"))


@pytest.mark.parametrize("word", ["--key-file", "--ca-file"])
@pytest.mark.parametrize("text", ["", None])
def test_a_file_that_cannot_be_used_is_named(word: str, text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=str(file)):
        access("--url", "https://localhost:9", word, str(file))


def test_the_page_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"OPERATOR_URL=http://192\.0\.2\.1: load is sent to this machine only"):
        access("--url", "http://localhost:9", OPERATOR_URL="http://192.0.2.1")


def test_the_database_is_the_one_of_the_environment_or_none(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://of-a-file/db")
    options = parse(("--url", "http://localhost:9"))
    assert access_of(options, {})[1] is None
    assert access_of(options, {"DATABASE_URL": "postgresql://h/db"})[1] == "postgresql://h/db"
    assert access_of(options, {"DATABASE_URL_FILE": str(file)})[1] == "postgresql://of-a-file/db"
