"""What this client says to a broker to authenticate itself."""

import socket

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.clock import SystemClock
from pipeline.log.kafka_link import KafkaLink
from pipeline.log.kafka_security import KafkaRefusedError, KafkaSecurity, Sasl
from pipeline.settings import Settings

# The example of RFC 7677, section 3
NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = f"{NONCE}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SERVER_FIRST = f"r={SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode()
CLIENT_FINAL = f"c=biws,r={SERVER_NONCE},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=".encode()
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.fixture
def sasl(monkeypatch: pytest.MonkeyPatch) -> Sasl:
    monkeypatch.setattr("kafka.scram.uuid.uuid4", lambda: NONCE)
    return Sasl("SCRAM-SHA-256", "user", "pencil")


def test_plain_is_one_message() -> None:
    said = Sasl("PLAIN", "ü=,", "p@ss").conversation(1.0)
    assert next(said) == "\0ü=,\0p@ss".encode()
    with pytest.raises(StopIteration):
        said.send(b"")


def test_scram_is_that_of_the_rfc(sasl: Sasl) -> None:
    said = sasl.conversation(1.0)
    assert next(said) == f"n,,n=user,r={NONCE}".encode()
    assert said.send(SERVER_FIRST) == CLIENT_FINAL
    with pytest.raises(StopIteration):
        said.send(SERVER_FINAL)


def test_a_server_that_does_not_know_the_password_is_found(sasl: Sasl) -> None:
    said = sasl.conversation(1.0)
    next(said)
    said.send(SERVER_FIRST)
    with pytest.raises(KafkaRefusedError, match="may not be the server that it claims to be"):
        said.send(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize("answer", [b"", b"e=other-error", b"r=another,s=QQ==,i=4096", SERVER_FIRST[:-5], b"\xff"])
def test_a_wrong_answer_ends_the_conversation(sasl: Sasl, answer: bytes) -> None:
    said = sasl.conversation(1.0)
    next(said)
    with pytest.raises(KafkaRefusedError):
        said.send(answer)


def test_a_password_is_in_no_representation() -> None:
    settings = Settings(
        event_log_url="kafka://h:1", kafka_sasl_mechanism="SCRAM-SHA-512", kafka_user="u", kafka_password="hunter2"
    )
    security = KafkaSecurity.of(settings)
    assert security.producer_options() == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "hunter2",
    }
    assert "hunter2" not in f"{settings!r} {security!r}"


def test_plain_sends_no_password_unencrypted_to_another_machine() -> None:
    # Given a broker whose address is not one of this machine as it is written, though it is
    security = KafkaSecurity(sasl=Sasl("PLAIN", "u", "hunter2"))
    clock = SystemClock()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ("127.1", server.getsockname()[1])
        with pytest.raises(KafkaRefusedError, match="would send it the password unencrypted"):
            KafkaLink(address, security, clock, clock.monotonic() + WAIT_SECONDS_MAX)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(WAIT_SECONDS_MAX)
            # Then nothing was sent
            assert connection.recv(100) == b""


def test_without_settings_nothing_is_encrypted_or_authenticated() -> None:
    assert KafkaSecurity.of(Settings()).producer_options() == {"security_protocol": "PLAINTEXT"}
