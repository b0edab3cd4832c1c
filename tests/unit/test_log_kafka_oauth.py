"""Access tokens for Kafka, from a real endpoint and from a file."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import SettingsError
from pipeline.log import kafka_oauth
from pipeline.log.kafka_confluent_oauth import REFUSED_SECONDS_MIN, LibraryTokens
from pipeline.log.kafka_oauth import Token, TokenError, Tokens, first_message, status_of, tokens_of
from pipeline.log.kafka_security import KafkaRefusedError, KafkaSecurity, Sasl
from pipeline.secrets import hide_secrets
from pipeline.settings import Settings, oauth_extensions_of
from stack.servers import LOOPBACK, free_port
from support.certificates import Authority, openssl_problem
from support.token_endpoint import CLIENT_ID, CLIENT_SECRET, TokenServer, unsigned_token

URL = "https://id.example/token"


def oauth_settings(url: str = URL, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "event_log_url": "kafka+ssl://broker:9093",
        "kafka_sasl_mechanism": "OAUTHBEARER",
        "kafka_oauth_url": url,
        "kafka_oauth_client_id": CLIENT_ID,
        "kafka_oauth_client_secret": CLIENT_SECRET,
        "kafka_oauth_scope": "kafka",
    }
    return Settings(**{**values, **changes})


@pytest.fixture
def server() -> Iterator[TokenServer]:
    made = TokenServer().start()
    yield made
    made.stop()


def problem_of(tokens: Tokens) -> str:
    """Why there is no token; neither a secret nor a token is in it."""
    with pytest.raises(TokenError) as raised:
        tokens.token(WAIT_SECONDS_MAX)
    text = str(raised.value)
    assert CLIENT_SECRET not in text
    assert "eyJ" not in text
    return text


def test_a_token_is_fetched_once_and_used_by_all(server: TokenServer) -> None:
    tokens = tokens_of(oauth_settings(server.url, kafka_oauth_audience="brokers"), SystemClock())
    first = tokens.token(WAIT_SECONDS_MAX)
    assert tokens.token(0) is first
    assert [first.text] == server.given
    assert server.forms == [{"grant_type": "client_credentials", "scope": "kafka", "audience": "brokers"}]
    assert first.text not in repr(first)


def test_a_token_is_renewed_ahead_of_its_end_while_the_old_one_is_used(server: TokenServer) -> None:
    clock = ManualClock()
    server.seconds = 100
    tokens = tokens_of(oauth_settings(server.url), clock)
    old = tokens.token(WAIT_SECONDS_MAX)
    clock.advance(74)
    assert tokens.token(0) is old
    # When it is due, nobody waits for the next one
    server.hold = threading.Event()
    clock.advance(2)
    assert tokens.token(0) is old
    server.hold.set()
    wait_until(lambda: tokens.token(0) is not old, "the token is renewed")
    assert len(server.given) == 2


def test_an_endpoint_that_is_down_is_named_and_works_again_by_itself(server: TokenServer) -> None:
    clock = ManualClock()
    server.seconds = 100
    tokens = tokens_of(oauth_settings(server.url), clock)
    old = tokens.token(WAIT_SECONDS_MAX)
    server.stop()
    # The token that is there lasts until its end
    clock.advance(99)
    assert tokens.token(0) is old
    clock.advance(2)
    assert problem_of(tokens) == f"KAFKA_OAUTH_URL={server.url} does not answer: Connection refused"
    server.start()
    clock.advance(10)
    assert tokens.token(WAIT_SECONDS_MAX).text == server.given[1]


def test_an_endpoint_is_not_asked_without_a_pause(server: TokenServer) -> None:
    clock = ManualClock()
    server.answer = 503, b"<html>"
    tokens = tokens_of(oauth_settings(server.url), clock)
    for _ in range(5):
        assert problem_of(tokens) == f"KAFKA_OAUTH_URL={server.url} answers with status 503 and gives no access token"
    assert len(server.forms) == 1
    clock.advance(1)
    problem_of(tokens)
    assert len(server.forms) == 2


def test_an_endpoint_that_does_not_answer_costs_a_caller_no_more_than_its_time(server: TokenServer) -> None:
    server.hold = threading.Event()
    tokens = tokens_of(oauth_settings(server.url), SystemClock())
    with pytest.raises(TokenError, match=r"KAFKA_OAUTH_URL=.* has not answered yet"):
        tokens.token(0.01)
    server.hold.set()
    assert tokens.token(WAIT_SECONDS_MAX).text == server.given[0]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, b'{"token": "x"}'), "answers without an access_token: is it the URL of the token endpoint?"),
        ((200, b"<html>"), "answers without an access_token: is it the URL of the token endpoint?"),
        ((200, b'{"access_token": "a\\nb"}'), "answers without an access_token: is it the URL of the token endpoint?"),
        (
            (200, b'{"access_token": "abc", "expires_in": 0}'),
            "gives an access token that has expired already (expires_in=0)",
        ),
        ((404, b"not here"), "answers with status 404 and gives no access token"),
        ((302, b""), "answers with status 302 and gives no access token"),
        (
            (400, b'{"error": "invalid_scope", "error_description": "no\\nkafka"}'),
            f"refuses KAFKA_OAUTH_CLIENT_ID={CLIENT_ID!r} (invalid_scope: no\\nkafka), status 400",
        ),
    ],
)
def test_a_wrong_answer_is_said(server: TokenServer, answer: tuple[int, bytes], problem: str) -> None:
    server.answer = answer
    assert problem_of(tokens_of(oauth_settings(server.url), SystemClock())) == f"KAFKA_OAUTH_URL={server.url} {problem}"


def test_a_wrong_secret_is_said_and_not_shown(server: TokenServer) -> None:
    tokens = tokens_of(oauth_settings(server.url, kafka_oauth_client_secret="wr0ng:secret"), SystemClock())
    text = problem_of(tokens)
    assert f"refuses KAFKA_OAUTH_CLIENT_ID={CLIENT_ID!r} (invalid_client: no client Basic ***, " in text
    assert "wr0ng" not in text


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_an_endpoint_that_sends_a_byte_now_and_then_is_given_up(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_oauth, "_REQUEST_SECONDS_MAX", 0.5)
    # Given an endpoint whose answer never ends, though no byte of it comes late
    is_over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(begin)
            while not is_over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server((LOOPBACK, 0)) as listener:
        url = f"http://{LOOPBACK}:{listener.getsockname()[1]}/token"
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            # Then the request ends, so that the next one can begin
            problem = problem_of(tokens_of(oauth_settings(url), SystemClock()))
            assert problem == f"KAFKA_OAUTH_URL={url} does not answer: its answer is not complete after 0.5 s"
        finally:
            is_over.set()
            thread.join()


@pytest.mark.parametrize(("given", "seconds"), [('"600"', 600.0), ("null", 60.0), ('"soon"', 60.0)])
def test_how_long_a_token_is_valid_may_be_a_text_or_left_out(server: TokenServer, given: str, seconds: float) -> None:
    clock = ManualClock()
    server.answer = 200, b'{"access_token": "abc", "expires_in": %b}' % given.encode()
    token = tokens_of(oauth_settings(server.url), clock).token(WAIT_SECONDS_MAX)
    assert token.expires_at - clock.monotonic() == seconds


def test_the_certificate_of_the_endpoint_is_verified(tmp_path: Path) -> None:
    if problem := openssl_problem():
        pytest.skip(problem)
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.issue("endpoint").both)
    server = TokenServer(context).start()
    try:
        trusting = oauth_settings(server.url, kafka_oauth_ca_file=str(authority.ca))
        assert tokens_of(trusting, SystemClock()).token(WAIT_SECONDS_MAX).text == server.given[0]
        assert "KAFKA_OAUTH_CA_FILE must name the CA's file" in problem_of(
            tokens_of(oauth_settings(server.url), SystemClock())
        )
        assert len(server.given) == 1
    finally:
        server.stop()


def test_a_token_in_a_file_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    settings = Settings(
        event_log_url="kafka+ssl://broker:9093",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_oauth_token_file=str(path),
    )
    tokens = tokens_of(settings, SystemClock())
    assert problem_of(tokens) == f"KAFKA_OAUTH_TOKEN_FILE='{path}' can't be read: No such file or directory"
    for text in ("eyJfirst.x.y", "eyJsecond.x.y"):
        path.write_text(text + "\n")
        assert tokens.token(0).text == text
    path.write_text("eyJfirst.x.y\neyJsecond")
    assert "must be one line without spaces" in problem_of(tokens)


def test_a_token_that_a_broker_refuses_is_not_given_again(server: TokenServer) -> None:
    # Given a broker that answers to a token, which it does only if it refuses it
    clock = ManualClock()
    tokens = tokens_of(oauth_settings(server.url), clock)
    sasl = Sasl("OAUTHBEARER", tokens=tokens, extensions={"logicalCluster": "lkc-1"})
    conversation = sasl.conversation(WAIT_SECONDS_MAX)
    next(conversation)
    [token] = server.given
    with pytest.raises(KafkaRefusedError) as raised:
        conversation.send(b'{"status":"invalid_token"}')
    assert str(raised.value) == f"it refuses the access token of KAFKA_OAUTH_URL={server.url} (status invalid_token)"
    # Then the next one gets another token, after a pause
    with pytest.raises(KafkaRefusedError) as raised:
        next(sasl.conversation(WAIT_SECONDS_MAX))
    said = f"KAFKA_OAUTH_URL={server.url}: a broker refuses its access token (status invalid_token)"
    assert str(raised.value) == f"there is no access token for it: {said}"
    clock.advance(1)
    assert token.encode() not in next(sasl.conversation(WAIT_SECONDS_MAX))
    assert len(server.given) == 2


def test_the_first_message_is_that_of_the_rfc() -> None:
    token = Token("abc", 0, 0)
    assert first_message(token, {}) == b"n,,\x01auth=Bearer abc\x01\x01"
    assert first_message(token, {"a": "b"}) == b"n,,\x01auth=Bearer abc\x01a=b\x01\x01"
    assert status_of(b'{"status":"insufficient_scope","scope":"kafka"}') == "status insufficient_scope, scope kafka"
    assert [status_of(answer) for answer in (b"\xff", b"[]", b"{}")] == ["no reason"] * 3


def test_extensions_are_names_with_values() -> None:
    assert oauth_extensions_of("logicalCluster=lkc-1, identityPoolId=pool=2") == {
        "logicalCluster": "lkc-1",
        "identityPoolId": "pool=2",
    }
    for wrong in ("a", "a=", "a-b=c", "auth=x", "a=b\x01"):
        with pytest.raises(ValueError, match="is no extension"):
            oauth_extensions_of(wrong)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kafka_oauth_url": ""}, "needs KAFKA_OAUTH_URL, KAFKA_OAUTH_CLIENT_ID and KAFKA_OAUTH_CLIENT_SECRET"),
        ({"kafka_oauth_client_secret": ""}, "needs KAFKA_OAUTH_URL, KAFKA_OAUTH_CLIENT_ID and"),
        (
            {"kafka_oauth_token_file": "/t"},
            "nobody requests an access token: leave KAFKA_OAUTH_URL, KAFKA_OAUTH_CLIENT_ID, ",
        ),
        ({"kafka_user": "me"}, "KAFKA_USER and KAFKA_PASSWORD are for PLAIN and SCRAM"),
        ({"kafka_oauth_url": "http://id.example/t"}, "KAFKA_OAUTH_URL would send the secret unencrypted"),
        ({"kafka_oauth_url": "id.example/t"}, "KAFKA_OAUTH_URL does not begin with https:// or http://"),
        ({"kafka_oauth_url": "https://me:hunter2@id.example/t"}, "KAFKA_OAUTH_URL is not of the form https://host"),
        ({"kafka_oauth_url": "https://id.example/t#x"}, "KAFKA_OAUTH_URL is not of the form https://host"),
        ({"kafka_oauth_ca_file": "/nowhere"}, "KAFKA_OAUTH_CA_FILE='/nowhere' has no certificate"),
        ({"kafka_oauth_extensions": "x"}, "KAFKA_OAUTH_EXTENSIONS: 'x' is no extension"),
        (
            {"event_log_url": "kafka://broker:9092"},
            "KAFKA_SASL_MECHANISM=OAUTHBEARER would send the access token unencrypted",
        ),
        (
            {"kafka_sasl_mechanism": "PLAIN", "kafka_user": "u", "kafka_password": "p"},
            "KAFKA_OAUTH_URL, .*KAFKA_OAUTH_SCOPE only works with KAFKA_SASL_MECHANISM=OAUTHBEARER",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as raised:
        oauth_settings(**changes)
    assert "hunter2" not in str(raised.value)


def test_a_secret_is_in_no_representation() -> None:
    settings = oauth_settings()
    security = KafkaSecurity.of(settings)
    assert security.producer_options() | {"ssl_context": None} == {
        "ssl_context": None,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "OAUTHBEARER",
    }
    assert CLIENT_SECRET not in f"{settings!r} {security!r}"
    # Nor a token in a message of a library
    assert hide_secrets(f"sent {unsigned_token()} to it") == "sent *** to it"


def test_nobody_waits_for_an_endpoint_that_is_not_there() -> None:
    tokens = tokens_of(oauth_settings(f"http://{LOOPBACK}:{free_port()}/t"), SystemClock())
    assert "does not answer: Connection refused" in problem_of(tokens)


def test_a_producer_of_librdkafka_is_not_replaced_for_each_refusal(server: TokenServer) -> None:
    # Given a token that a broker has refused soon after the producer got it
    clock = ManualClock()
    its = LibraryTokens(tokens_of(oauth_settings(server.url), clock), {}, clock)
    text, *_ = its.give("")
    its.note_refusal()
    clock.advance(REFUSED_SECONDS_MIN - 1)
    # Then it stays for a while: other brokers may accept it
    assert not its.are_late
    # And then it is replaced if there is another token
    clock.advance(1)
    wait_until(lambda: its.are_late, "another token is there")
    assert its.give("")[0] != text
    assert not its.are_late


def test_a_refused_token_that_is_the_only_one_stays(tmp_path: Path) -> None:
    path, clock = tmp_path / "token", ManualClock()
    path.write_text("one")
    settings = Settings(
        event_log_url="kafka+ssl://broker:9093",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_oauth_token_file=str(path),
    )
    its = LibraryTokens(tokens_of(settings, clock), {}, clock)
    assert its.give("")[0] == "one"
    its.note_refusal()
    clock.advance(REFUSED_SECONDS_MIN)
    assert not its.are_late
