"""Kafka with TLS and SASL: what is accepted, and what an operator reads when it isn't."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.processes import ROOT, Program, http_status, ingest
from checks.testbed.waiting import WAIT_SECONDS_MAX, eventually, wait_until
from pipeline.errors import LogMisconfiguredError, LogPartialError, LogUnavailableError, SettingsError
from pipeline.log.kafka import KafkaLog
from pipeline.log.kafka_producer import Producer, ProducerError
from pipeline.settings import Settings
from stack.config import environ_of
from stack.servers import LOOPBACK
from support.certificates import Authority
from support.event_logs import KafkaRig, ScriptedLowestOffsets, log_settings, read_all, recovered
from support.kafka_secured import NARROW_USER, PASSWORD, SESSION_MS, USER, SecuredKafka
from support.traffic import event


@pytest.fixture
def opened(secured_kafka: SecuredKafka) -> Iterator[Any]:
    """Opens a log of the test's own with the given settings."""
    rigs = []

    def open_log(**changes: Any) -> KafkaLog:
        settings = secured_kafka.settings(**changes)
        rigs.append(KafkaRig(log_settings(settings.pop("event_log_url"), **settings)))
        return rigs[-1].open()

    yield open_log
    for rig in rigs:
        rig.close()


def works(log: KafkaLog) -> None:
    """Everything that a log is used for: the wire client and the producer."""
    identity = recovered(log.identity)
    recovered(log.prepare)
    log.append([(0, b"a" * 300_000), (1, b"b")])
    assert read_all(log, 0) == [b"a" * 300_000]
    assert read_all(log, 1) == [b"b"]
    log.commit(identity.log_id, 0, 1)
    assert [position.end for position in log.positions()] == [1, 1, 0, 0]


TRIES = 5
CLIENTS = ("kafka-python", "confluent")  # that append; the wire client is the same


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_each_mechanism_works_over_tls(opened: Any, mechanism: str) -> None:
    # (SCRAM-SHA-512 is in the contract suite)
    if mechanism == "PLAIN":
        log = opened(kafka_sasl_mechanism=mechanism, kafka_user="plain", kafka_password="plain-password")
        # The user exists, and may do nothing
        with pytest.raises((LogMisconfiguredError, LogUnavailableError), match=r"may not see it|no right"):
            log.identity()
    else:
        for client in CLIENTS:
            works(opened(kafka_sasl_mechanism=mechanism, kafka_client=client))


def test_a_clients_certificate_works_alone(opened: Any, secured_kafka: SecuredKafka) -> None:
    client = secured_kafka.client
    assert client is not None
    url = f"kafka+ssl://{LOOPBACK}:{secured_kafka.tls_port}"
    nobody = {"kafka_sasl_mechanism": "", "kafka_user": "", "kafka_password": ""}
    works(opened(event_log_url=url, kafka_cert_file=client.certificate, kafka_key_file=client.key, **nobody))
    # And the key may be in the same file
    works(opened(event_log_url=url, kafka_cert_file=client.both, **nobody))
    # And for the other library
    works(opened(event_log_url=url, kafka_cert_file=client.both, kafka_client="confluent", **nobody))
    # Without it, the error says what is missing
    with pytest.raises(LogUnavailableError, match=r"wants one \(.*certificate.*\): see KAFKA_CERT_FILE"):
        opened(event_log_url=url, **nobody).identity()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_user_with_the_documented_rights_needs_no_others(
    opened: Any, secured_kafka: SecuredKafka, client: str
) -> None:
    log = opened(kafka_user=NARROW_USER, kafka_client=client)
    with pytest.raises((LogMisconfiguredError, LogUnavailableError), match=r"may not see it|no right"):
        log.identity()
    secured_kafka.allow(NARROW_USER, log._settings.log_topic, log._settings.kafka_group)
    # (the broker learns of rights from the controller, a moment later)
    eventually(log.identity, "the user sees the topic", passing=(LogMisconfiguredError, LogUnavailableError))
    works(log)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_producer_sends_nothing_to_a_broker_that_it_can_not_verify(
    opened: Any, secured_kafka: SecuredKafka, tmp_path: Path, client: str, wrong: str
) -> None:
    # (The other tests of what is refused are of the wire client, which asks first.) Given a topic, and two producers
    right = opened(kafka_client=client)
    works(right)
    if wrong == "authority":
        changes = {"kafka_ca_file": str(Authority(tmp_path, "other").ca)}
    else:
        changes = {"event_log_url": f"kafka+ssl://localhost:{secured_kafka.sasl_tls_port}"}
    doubting = opened(kafka_client=client, **changes)._new_producer()
    trusting = right._new_producer()

    def knows_topic(producer: Producer) -> bool:
        try:
            return bool(producer.partitions_for(right._settings.log_topic, 0.5))
        except ProducerError:
            return False

    try:
        # When the one that has the right settings is connected, which began after the other
        eventually(lambda: knows_topic(trusting), "it is connected")
        # Then the other one still is not
        assert not any(knows_topic(doubting) for _ in range(5))
    finally:
        doubting.close(1.0)
        trusting.close(1.0)


def test_a_connection_is_replaced_before_its_session_ends(opened: Any, secured_kafka: SecuredKafka) -> None:
    # Given a listener on which Kafka ends connections that are used after their session
    url = f"kafka://{LOOPBACK}:{secured_kafka.sasl_port}"

    def outlives_sessions() -> bool:
        log = opened(event_log_url=url, kafka_ca_file="", kafka_client="confluent")
        recovered(log.prepare)
        ends_at, appended = time.monotonic() + 2.5 * SESSION_MS / 1000, 0
        while time.monotonic() < ends_at:
            try:
                log._wire.topic(log._settings.log_topic)
                log.append([(0, b"a")])
            except (LogUnavailableError, LogPartialError):
                return False
            appended += 1
        assert read_all(log, 0) == [b"a"] * appended
        return True

    # Then each request is answered, for longer than two sessions; and librdkafka's, which renews its own. (A busy
    # machine may stand still between the look at a session and its use.)
    assert any(outlives_sessions() for _ in range(TRIES))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kafka_password": "wr0ng"}, f"it refuses KAFKA_USER='{USER}' by SCRAM-SHA-512: .* KAFKA_PASSWORD is wrong"),
        ({"kafka_user": "nobody"}, "it refuses KAFKA_USER='nobody' by SCRAM-SHA-512: there is no such user"),
        (
            {"kafka_sasl_mechanism": "PLAIN", "kafka_password": "wr0ng"},
            f"it refuses KAFKA_USER='{USER}' by PLAIN: .* KAFKA_PASSWORD is wrong",
        ),
        ({"kafka_ca_file": ""}, r"not signed by the CAs of this machine \(.*\): KAFKA_CA_FILE must name"),
        ({"kafka_ca_file": "other"}, r"not signed by KAFKA_CA_FILE=.*other\.pem \(.*\): KAFKA_CA_FILE must name"),
        ({"event_log_url": "kafka+ssl://localhost:{sasl_tls_port}"}, "not valid for 'localhost': connect to a name"),
        ({"event_log_url": "kafka+ssl://127.0.0.1:{port}"}, "does not speak TLS there .*: use its port for TLS"),
        (
            {"event_log_url": "kafka://127.0.0.1:{sasl_tls_port}", "kafka_ca_file": "none"},
            r"EVENT_LOG_URL must begin with kafka\+ssl://|its listener may want TLS or SASL",
        ),
        ({"event_log_url": "kafka://127.0.0.1:{port}", "kafka_ca_file": "none"}, "its listener has no SASL"),
        (
            {
                "event_log_url": "kafka://127.0.0.1:{sasl_port}",
                "kafka_ca_file": "none",
                "kafka_sasl_mechanism": "SCRAM-SHA-256",
            },
            "does not take KAFKA_SASL_MECHANISM=SCRAM-SHA-256, but SCRAM-SHA-512",
        ),
        (
            {
                "event_log_url": "kafka://127.0.0.1:{sasl_port}",
                "kafka_ca_file": "none",
                **dict.fromkeys(("kafka_sasl_mechanism", "kafka_user", "kafka_password"), ""),
            },
            "its listener may want TLS or SASL",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    opened: Any, secured_kafka: SecuredKafka, tmp_path: Path, changes: dict[str, str], what: str
) -> None:
    given = {name: value.format(**vars(secured_kafka)) for name, value in changes.items()}
    if given.get("kafka_ca_file") == "other":
        given["kafka_ca_file"] = str(Authority(tmp_path, "other").ca)
    if given.get("kafka_ca_file") == "none":
        given["kafka_ca_file"] = ""
    log = opened(**given)
    with pytest.raises(LogUnavailableError, match=what) as raised:
        log.identity()
    assert "wr0ng" not in str(raised.value)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kafka_ca_file": "/nowhere.pem"}, r"KAFKA_CA_FILE='/nowhere\.pem' has no certificate: No such file"),
        ({"kafka_ca_file": "{key}"}, r"KAFKA_CA_FILE='.*sluice\.key' has no certificate"),
        ({"kafka_cert_file": "{cert}"}, r"KAFKA_CERT_FILE='.*sluice\.pem' can't be used"),
        ({"kafka_cert_file": "{cert}", "kafka_key_file": "{other}"}, r"other\.key' can't be used: key values mismatch"),
        ({"kafka_key_file": "{key}"}, "KAFKA_KEY_FILE is set, and KAFKA_CERT_FILE is not"),
        ({"event_log_url": "kafka://h"}, "KAFKA_CA_FILE only works with TLS, .* does not begin with kafka"),
        ({"kafka_user": ""}, "KAFKA_SASL_MECHANISM=SCRAM-SHA-512 needs KAFKA_USER and KAFKA_PASSWORD"),
        ({"kafka_sasl_mechanism": ""}, "KAFKA_USER or KAFKA_PASSWORD is set, and KAFKA_SASL_MECHANISM is not"),
        ({"kafka_sasl_mechanism": "GSSAPI"}, "KAFKA_SASL_MECHANISM='GSSAPI' is none of"),
        (
            {"event_log_url": "kafka://127.example:1,[::1]:1", "kafka_ca_file": "", "kafka_sasl_mechanism": "PLAIN"},
            "PLAIN would send the password unencrypted",
        ),
        (
            {"event_log_url": "kafka+ssl://u:hunter2@h:1"},
            "EVENT_LOG_URL has a user or a password: for Kafka these are KAFKA_USER",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_the_start(
    secured_kafka: SecuredKafka, tmp_path: Path, changes: dict[str, str], what: str
) -> None:
    client = secured_kafka.client
    assert client is not None
    other = Authority(tmp_path).issue("other")
    files = {"cert": client.certificate, "key": client.key, "other": other.key}
    given = {name: value.format(**files) for name, value in changes.items()}
    with pytest.raises(SettingsError, match=what) as raised:
        Settings(**secured_kafka.settings(**given))
    assert "hunter2" not in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_wrong_password_is_in_health_and_status_and_in_the_log_and_never_the_password(
    secured_kafka: SecuredKafka, settings: Settings, tmp_path: Path
) -> None:
    # Given an ingest process whose password, from a file, is wrong
    secret = tmp_path / "password"
    secret.write_text("wr0ng;@%:/ päss\n")
    given = secured_kafka.settings(kafka_password="x", log_topic=settings.log_topic)
    wrong = Settings(**{**vars(settings), **given})
    program = ingest(wrong, tmp_path)
    files = {"KAFKA_PASSWORD": "", "KAFKA_PASSWORD_FILE": str(secret), "LOG_LEVEL": "DEBUG"}
    program.start(**files)
    try:
        url = f"http://{LOOPBACK}:{wrong.ingest_port}"
        health = _health(program, url, "KAFKA_PASSWORD is wrong")
        # Then health says which value it is, and nothing is accepted
        assert health["status"] == "critical"
        assert http_status(f"{url}/readyz") == 503
        # And so does the command
        status = subprocess.run(
            [sys.executable, "-m", "pipeline", "status", "--json"],
            env={"PATH": "/usr/bin:/bin", **environ_of(wrong), **files},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"KAFKA_USER='{USER}'" in json.dumps(json.loads(status.stdout)["reasons"])
        # And the password is in no output
        for text in (program.log(), json.dumps(health), status.stdout, status.stderr, _get(f"{url}/")):
            assert "wr0ng" not in text
            assert "päss" not in text
    finally:
        program.stop()
    assert "KAFKA_PASSWORD is wrong" in program.log()
    # When the password is right, events are accepted, by the other library too
    secret.write_text(f"{PASSWORD}\n")
    program.start(**files, KAFKA_CLIENT="confluent")
    try:
        wait_until(lambda: http_status(f"{url}/readyz") == 200, "ingest is ready")
        request = urllib.request.Request(
            f"{url}/api/logs", json.dumps(event(1, run="tls")).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
            assert answer.status == 202
        assert PASSWORD not in program.log()
    finally:
        program.stop()
    log = KafkaLog(
        Settings(**{**vars(settings), **secured_kafka.settings(log_topic=settings.log_topic)}), ScriptedLowestOffsets()
    )
    assert sum(position.end for position in recovered(log.positions)) == 1
    log.close()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS_MAX) as answer:
        return str(answer.read().decode())


def _health(program: Program, url: str, words: str) -> dict[str, Any]:
    """The health answer once it contains these words."""
    found: dict[str, Any] = {}

    def says() -> bool:
        assert program.is_running, program.log()
        with contextlib.suppress(OSError):
            found.update(json.loads(_get(f"{url}/api/logs/health")))
        return words in json.dumps(found)

    wait_until(says, f"health says {words!r}")
    return found
