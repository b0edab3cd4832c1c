"""What this client says to a broker to authenticate itself."""

import pytest

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
    said = Sasl("PLAIN", "ü=,", "p@ss").conversation()
    assert next(said) == "\0ü=,\0p@ss".encode()
    with pytest.raises(StopIteration):
        said.send(b"")


def test_scram_is_that_of_the_rfc(sasl: Sasl) -> None:
    said = sasl.conversation()
    assert next(said) == f"n,,n=user,r={NONCE}".encode()
    assert said.send(SERVER_FIRST) == CLIENT_FINAL
    with pytest.raises(StopIteration):
        said.send(SERVER_FINAL)


def test_a_server_that_does_not_know_the_password_is_found(sasl: Sasl) -> None:
    said = sasl.conversation()
    next(said)
    said.send(SERVER_FIRST)
    with pytest.raises(KafkaRefusedError, match="may not be the server that it claims to be"):
        said.send(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize("answer", [b"", b"e=other-error", b"r=another,s=QQ==,i=4096", SERVER_FIRST[:-5], b"\xff"])
def test_a_wrong_answer_ends_the_conversation(sasl: Sasl, answer: bytes) -> None:
    said = sasl.conversation()
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


def test_without_settings_nothing_is_encrypted_or_authenticated() -> None:
    assert KafkaSecurity.of(Settings()).producer_options() == {"security_protocol": "PLAINTEXT"}
