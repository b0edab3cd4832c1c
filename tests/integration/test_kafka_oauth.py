"""Kafka with OAUTHBEARER: tokens of a real endpoint, for the wire client and for both producers."""

import contextlib
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.processes import http_status, ingest
from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline.clock import SystemClock
from pipeline.errors import LogPartialError, LogUnavailableError
from pipeline.log.kafka import KafkaLog
from pipeline.log.kafka_producer import Producer, ProducerError
from pipeline.log.kafka_python import PythonProducer
from pipeline.log.kafka_security import KafkaSecurity
from pipeline.settings import Settings
from stack.servers import LOOPBACK
from support.event_logs import KafkaRig, log_settings, read_all, recovered
from support.kafka_secured import SESSION_MS, SecuredKafka
from support.token_endpoint import CLIENT_ID, CLIENT_SECRET, SCOPE, TokenServer, unsigned_token
from support.traffic import event

TRIES = 5
CLIENTS = ("kafka-python", "confluent")  # that append; the wire client is the same


@pytest.fixture
def endpoint() -> Iterator[TokenServer]:
    made = TokenServer().start()
    yield made
    made.stop()


@pytest.fixture
def given(secured_kafka: SecuredKafka, endpoint: TokenServer) -> dict[str, Any]:
    """The settings for tokens of this endpoint."""
    return {
        "event_log_url": f"kafka://{LOOPBACK}:{secured_kafka.oauth_port}",
        "kafka_sasl_mechanism": "OAUTHBEARER",
        "kafka_oauth_url": endpoint.url,
        "kafka_oauth_client_id": CLIENT_ID,
        "kafka_oauth_client_secret": CLIENT_SECRET,
        "kafka_oauth_scope": SCOPE,
    }


@pytest.fixture
def opened(given: dict[str, Any]) -> Iterator[Any]:
    """Opens a log of the test's own with the given settings."""
    rigs = []

    def open_log(**changes: Any) -> KafkaLog:
        settings = {**given, **changes}
        rigs.append(KafkaRig(log_settings(settings.pop("event_log_url"), **settings)))
        return rigs[-1].open()

    yield open_log
    for rig in rigs:
        rig.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_sessions_and_tokens_end_and_nothing_else_does(opened: Any, endpoint: TokenServer, client: str) -> None:
    # Given tokens and sessions that end soon. A token is renewed after three quarters of its life: the last quarter is
    # so long that a busy machine has the next one in time
    endpoint.seconds = 2 * SESSION_MS / 1000 + 2

    def outlives_them() -> bool:
        endpoint.given.clear()
        log = opened(kafka_client=client)
        recovered(log.prepare)
        ends_at, appended = time.monotonic() + 1.25 * endpoint.seconds, 0
        while time.monotonic() < ends_at:
            try:
                log._wire.topic(log._settings.log_topic)
                log.append([(0, b"%d" % appended)])
            except (LogUnavailableError, LogPartialError):
                return False
            appended += 1
        # (kafka-python-ng may store a record twice if its broker ends the session)
        assert {int(value) for value in read_all(log, 0)} == set(range(appended))
        assert len(endpoint.given) >= 2
        return True

    # Then each append is confirmed, for longer than a token and three sessions. (A busy machine may stand still between
    # the look at a session and its use.)
    assert any(outlives_them() for _ in range(TRIES))


@pytest.mark.parametrize("client", CLIENTS)
def test_an_endpoint_that_is_down_is_a_log_that_is_down(opened: Any, endpoint: TokenServer, client: str) -> None:
    endpoint.seconds = SESSION_MS / 1000
    log = opened(kafka_client=client, append_seconds_max=1.0)
    acked: list[bytes] = []

    def append() -> str:
        """Append one record; what is said if it is not confirmed."""
        value = b"%d" % time.monotonic_ns()
        try:
            log.append([(0, value)])
        except (LogUnavailableError, LogPartialError) as error:
            return str(error)
        acked.append(value)
        return ""

    wait_until(lambda: not append(), "the log accepts")
    endpoint.stop()
    # Then it goes on until the token ends, and is unavailable after that, with the reason
    wait_until(lambda: f"KAFKA_OAUTH_URL={endpoint.url} does not answer" in append(), "the endpoint is named")
    # And it works again by itself
    endpoint.start()
    wait_until(lambda: not append(), "the log accepts again")
    wait_until(lambda: set(acked) <= set(recovered(lambda: read_all(log, 0))), "all that was confirmed is there")


def test_the_wire_client_says_that_its_token_is_refused(opened: Any, endpoint: TokenServer) -> None:
    endpoint.scope = "another"
    with pytest.raises(LogUnavailableError) as raised:
        opened().identity()
    assert f"it refuses the access token of KAFKA_OAUTH_URL={endpoint.url} (status insufficient_scope" in str(
        raised.value
    )
    assert "eyJ" not in str(raised.value)
    # With a better one it is accepted
    endpoint.scope = None
    log = opened()
    recovered(log.prepare)


def refused_by(producer: Producer, records: list[logging.LogRecord]) -> str:
    """What a producer says and logs that does not know the topic's partitions."""
    said: list[str] = []

    def is_said() -> bool:
        try:
            assert not producer.partitions_for("t", 1.0)
        except ProducerError as error:
            said.append(str(error))
        text = " ".join([*said, *(record.getMessage() for record in records)])
        return "refuses the access token" in text or "SASL authentication error" in text

    try:
        wait_until(is_said, "the refusal is said")
    finally:
        producer.close(0.1)
    return " ".join([*said, *(record.getMessage() for record in records)])


@pytest.mark.parametrize("client", CLIENTS)
def test_a_producer_says_that_its_token_is_refused(
    given: dict[str, Any], endpoint: TokenServer, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.scope = "another"
    settings = Settings(**given)
    bootstrap = [settings.event_log_url.partition("://")[2]]
    security, clock = KafkaSecurity.of(settings), SystemClock()
    caplog.set_level(logging.WARNING)
    producer: Producer
    if client == "confluent":
        from pipeline.log.kafka_confluent import ConfluentProducer

        producer = ConfluentProducer(bootstrap, security, clock)
    else:
        producer = PythonProducer.connect(bootstrap, security, clock)
    text = refused_by(producer, caplog.records)
    ours = f"refuses the access token of KAFKA_OAUTH_URL={endpoint.url}"
    assert ("insufficient_scope" if client == "confluent" else ours) in text
    assert "eyJ" not in text
    assert CLIENT_SECRET not in text


def test_a_producer_whose_token_is_refused_is_replaced_once_there_is_another(
    given: dict[str, Any], endpoint: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.log import kafka_confluent_oauth
    from pipeline.log.kafka_confluent import ConfluentProducer

    monkeypatch.setattr(kafka_confluent_oauth, "REFUSED_SECONDS_MIN", 0.0)
    # Given a token that is valid for an hour, and that no broker accepts (any more)
    endpoint.scope = "another"
    settings = Settings(**given)
    producer = ConfluentProducer(
        [settings.event_log_url.partition("://")[2]], KafkaSecurity.of(settings), SystemClock()
    )
    wait_until(lambda: bool(endpoint.given), "the producer has a token")
    # When the endpoint gives one that they accept
    endpoint.scope = None

    def is_broken() -> bool:
        with contextlib.suppress(ProducerError):
            producer.partitions_for("t", 0.2)
        return producer.is_broken

    # Then the library does not keep the first one until it ends: it is replaced
    try:
        wait_until(is_broken, "the producer is to be replaced")
    finally:
        producer.close(0.1)
    assert len(endpoint.given) == 2


@pytest.mark.parametrize("client", CLIENTS)
def test_a_token_may_be_in_a_file_that_another_program_renews(opened: Any, tmp_path: Path, client: str) -> None:
    path = tmp_path / "token"
    path.write_text(unsigned_token(seconds=-10))
    others = ("url", "client_id", "client_secret", "scope")
    log = opened(
        kafka_client=client, kafka_oauth_token_file=str(path), **{f"kafka_oauth_{name}": "" for name in others}
    )
    with pytest.raises(LogUnavailableError, match="it refuses the access token of KAFKA_OAUTH_TOKEN_FILE="):
        log.identity()
    path.write_text(unsigned_token())
    recovered(lambda: log.append([(0, b"a")]))
    assert read_all(log, 0) == [b"a"]


def test_clients_of_ingest_read_why_and_nobody_reads_a_secret(
    given: dict[str, Any], endpoint: TokenServer, settings: Settings, tmp_path: Path
) -> None:
    # Given an ingest process whose endpoint does not run
    endpoint.stop()
    secret = tmp_path / "secret"
    secret.write_text(CLIENT_SECRET + "\n")
    program = ingest(Settings(**{**vars(settings), **given}), tmp_path)
    program.start(KAFKA_OAUTH_CLIENT_SECRET="", KAFKA_OAUTH_CLIENT_SECRET_FILE=str(secret), LOG_LEVEL="DEBUG")
    url = f"http://{LOOPBACK}:{settings.ingest_port}"

    def post() -> tuple[int, str]:
        body, headers = json.dumps(event(1, run="oauth")).encode(), {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{url}/api/logs", body, headers), timeout=WAIT_SECONDS_MAX
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            assert program.is_running, program.log()
            return 0, ""

    try:
        wait_until(lambda: post()[0] == 503, "events are refused")
        health: list[str] = []

        def health_says() -> bool:
            with urllib.request.urlopen(f"{url}/api/logs/health", timeout=WAIT_SECONDS_MAX) as answer:
                health.append(answer.read().decode())
            return f"KAFKA_OAUTH_URL={endpoint.url} does not answer" in health[-1]

        wait_until(health_says, "health names the endpoint")
        assert http_status(f"{url}/readyz") == 503
        # Then it accepts events soon after the endpoint runs
        endpoint.start()
        wait_until(lambda: post()[0] == 202, "events are accepted")
        for text in (*health, program.log()):
            assert CLIENT_SECRET not in text
            assert not any(token in text for token in endpoint.given)
    finally:
        program.stop()
    assert endpoint.given
