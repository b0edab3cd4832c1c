"""The producer of confluent-kafka, with a library whose reports are scripted."""

from collections.abc import Callable
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException
from unit.test_log_kafka_writer import FakeWire

from checks.testbed.waiting import wait_until
from pipeline.clock import ManualClock
from pipeline.errors import LogFullError, LogIndeterminateError, LogPartialError, LogUnavailableError, SettingsError
from pipeline.log.kafka_confluent import ConfluentProducer, client_options
from pipeline.log.kafka_oauth import Token, TokenError
from pipeline.log.kafka_producer import ProducerError
from pipeline.log.kafka_security import NO_SECURITY, KafkaSecurity, Sasl
from pipeline.log.kafka_writer import KafkaWriter
from pipeline.settings import Settings
from pipeline.tls import TlsFiles
from support.event_logs import ScriptedLowestOffsets

Report = Callable[[KafkaError | None, Any], None]


class Message:
    def __init__(self, offset: int | None) -> None:
        self._offset = offset

    def offset(self) -> int | None:
        return self._offset


class Library:
    """Stands for `confluent_kafka.Producer`: confirms what it was given when it is asked to, unless told otherwise."""

    def __init__(self, clock: ManualClock, ends: dict[int, int], options: dict[str, Any]) -> None:
        self._clock = clock
        self.ends = ends  # of the topic's partitions
        self.options = options
        self.waiting: list[tuple[int, Report]] = []
        self.is_silent = False
        self.room = 1_000_000
        self.refusal: KafkaError | None = None
        self.failures: list[KafkaError | None] = []  # of the next reports
        self.is_purged = False
        self.token: tuple[str, float, str, dict[str, str]] = ("", 0.0, "", {})
        self.fatal: KafkaException | None = None  # raised by the next call that serves reports

    def list_topics(self, topic: str, timeout: float) -> Any:
        assert timeout > 0
        found = type("Topic", (), {"error": None, "partitions": {0: None, 1: None, 2: None}})
        return type("Cluster", (), {"topics": {topic: found}})

    def produce(self, _topic: str, _value: bytes, _key: None, partition: int, report: Report) -> None:
        if self.refusal is not None:
            raise KafkaException(self.refusal)
        if len(self.waiting) >= self.room:
            raise BufferError("Local: Queue full")
        self.waiting.append((partition, report))

    def poll(self, timeout: float) -> int:
        return self.flush(timeout)

    def flush(self, timeout: float) -> int:
        if self.fatal is not None:
            fatal, self.fatal = self.fatal, None
            raise fatal
        if self.is_silent and not self.is_purged:
            self._clock.advance(timeout)
            return len(self.waiting)
        for partition, report in self.waiting:
            error = self.failures.pop(0) if self.failures else None
            if error is None:
                report(None, Message(self.ends.get(partition, 0)))
                self.ends[partition] = self.ends.get(partition, 0) + 1
            else:
                report(error, Message(None))
        self.waiting.clear()
        return 0

    def purge(self, *, in_queue: bool, in_flight: bool, blocking: bool) -> None:
        assert (in_queue, in_flight, blocking) == (True, True, False)
        self.is_purged = True
        self.failures = [KafkaError(KafkaError._PURGE_INFLIGHT)] * len(self.waiting)


class Rig:
    """A writer on such producers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, security: KafkaSecurity = NO_SECURITY) -> None:
        self.clock = ManualClock()
        self.libraries: list[Library] = []
        self.ends: dict[int, int] = {}
        monkeypatch.setattr(confluent_kafka, "Producer", self._new_library)
        self.writer = KafkaWriter(
            Settings(append_seconds_max=1.0),
            FakeWire(),  # type: ignore[arg-type]
            lambda: ConfluentProducer(["broker:9092"], security, self.clock),
            ScriptedLowestOffsets(),
            self.clock,
        )

    def _new_library(self, options: dict[str, Any], logger: object) -> Library:
        assert logger is not None
        self.libraries.append(Library(self.clock, self.ends, options))
        return self.libraries[-1]

    @property
    def library(self) -> Library:
        return self.libraries[-1]

    def fail(self) -> None:
        """The library gives up: it raises that where it would serve reports."""
        self.library.fatal = KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER))


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(monkeypatch)
    made.writer.append([(0, b"a"), (1, b"b"), (0, b"c")])
    return made


def failures_of(rig: Rig, *partitions: int) -> dict[int, str]:
    """What is told of each partition that fails in an append of one record to each."""
    with pytest.raises(LogPartialError) as raised:
        rig.writer.append([(partition, b"x") for partition in partitions])
    return {partition: f"{type(error).__name__}: {error}" for partition, error in raised.value.failures.items()}


def test_it_is_idempotent_and_asks_all_replicas(rig: Rig) -> None:
    options = rig.library.options
    assert options["enable.idempotence"] is True  # so acks=all, and at most 5 requests in flight
    assert options["security.protocol"] == "PLAINTEXT"
    assert rig.ends == {0: 2, 1: 1}


def test_a_record_that_fails_leaves_its_partition_open_and_no_other(rig: Rig) -> None:
    # Given a batch in the middle of a partition's records that its broker refuses
    rig.library.failures = [None, None, KafkaError(KafkaError._MSG_TIMED_OUT), None]
    with pytest.raises(LogPartialError) as raised:
        rig.writer.append([(0, b"x"), (1, b"x"), (0, b"x"), (0, b"x")])
    # Then nobody is told that they are stored, nor that they are not
    assert isinstance(raised.value.of([0]), LogIndeterminateError)
    assert "Message timed out" in str(raised.value.of([0]))
    assert raised.value.of([1]) is None


def test_a_record_whose_offset_is_not_known_is_not_confirmed(rig: Rig) -> None:
    # (the broker says "duplicate sequence number": whether its partition has lost its tail can't be checked)
    rig.ends[0] = -1001
    assert "its offset is not known" in failures_of(rig, 0, 1)[0]


def test_a_silent_broker_ends_an_append_in_time_and_its_partition_waits_for_the_answer(rig: Rig) -> None:
    rig.library.is_silent = True
    started = rig.clock.monotonic()
    assert failures_of(rig, 0)[0].startswith("LogIndeterminateError")
    assert rig.clock.monotonic() - started <= 1.01
    # Then its partition is refused for certain while the answer is owed
    assert "owes the answer" in failures_of(rig, 0)[0]
    assert len(rig.library.waiting) == 1
    # And goes on when it is there
    rig.library.is_silent = False
    rig.writer.append([(0, b"y")])
    assert rig.ends[0] == 4


def test_a_full_buffer_is_waited_for(rig: Rig) -> None:
    rig.library.room = 2
    rig.writer.append([(number % 2, b"x") for number in range(9)])
    assert sum(rig.ends.values()) == 3 + 9


def test_a_buffer_that_stays_full_refuses_for_certain(rig: Rig) -> None:
    rig.library.room, rig.library.is_silent = 0, True
    started = rig.clock.monotonic()
    with pytest.raises(LogFullError, match="its buffer is full"):
        rig.writer.append([(0, b"x")])
    assert rig.clock.monotonic() - started <= 1.01


def test_a_producer_that_has_failed_is_replaced(rig: Rig) -> None:
    # Given a broker that has lost what it confirmed, which librdkafka takes for the end of this producer
    first = rig.library
    rig.fail()
    # Then the next append has another one
    rig.writer.append([(1, b"x")])
    assert len(rig.libraries) == 2
    assert rig.ends == {0: 2, 1: 2}
    assert first.is_purged
    # And so it is if that is known by a refusal alone; what it refused was not written
    rig.library.refusal = KafkaError(KafkaError._FATAL)
    with pytest.raises(LogUnavailableError, match="its producer has failed"):
        rig.writer.append([(1, b"x")])
    rig.writer.append([(2, b"x")])
    assert len(rig.libraries) == 3


def test_a_producer_that_fails_during_an_append_confirms_nothing_of_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a library whose reports end in an error of its own, as those after a fatal one do
    first = rig.library

    def broken(_timeout: float) -> int:
        if not first.waiting:
            return 0
        for _, report in first.waiting:
            with pytest.raises(SystemError):
                report(None, BrokenMessage())
        raise SystemError("returned a result with an exception set")

    monkeypatch.setattr(first, "flush", broken)
    told = failures_of(rig, 0, 1)
    # Then nothing is confirmed, and the next append has another producer
    assert all(text.startswith("LogIndeterminateError") for text in told.values()), told
    rig.clock.advance(1.1)
    rig.writer.append([(0, b"y"), (1, b"y")])
    assert len(rig.libraries) == 2


class BrokenMessage:
    def offset(self) -> int:
        raise SystemError


def test_what_a_replaced_producer_owed_is_no_longer_waited_for(rig: Rig) -> None:
    # Given a producer that fails while it owes an answer
    rig.library.is_silent = True
    failures_of(rig, 0)
    rig.fail()
    # Then the partition goes on with the next one
    started = rig.clock.monotonic()
    rig.writer.append([(0, b"x")])
    assert len(rig.libraries) == 2
    assert rig.clock.monotonic() - started < 1.0


def test_a_library_that_refuses_its_options_makes_the_log_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a key that librdkafka can't read
    rig = Rig(monkeypatch)
    problem = KafkaError(KafkaError._INVALID_ARG, "ssl.key.location failed")

    def refuse(_options: dict[str, Any], logger: object) -> Library:
        raise KafkaException(problem)

    monkeypatch.setattr(confluent_kafka, "Producer", refuse)
    # When something is appended, the log is unavailable, and nothing was written
    with pytest.raises(LogUnavailableError, match=r"accepts no events.*ssl\.key\.location failed"):
        rig.writer.append([(0, b"x")])
    # And the next append tries it again
    monkeypatch.setattr(confluent_kafka, "Producer", rig._new_library)
    rig.writer.append([(0, b"x")])
    assert rig.ends == {0: 1}


def test_settings_of_links_are_translated(tmp_path: Any) -> None:
    files = TlsFiles("KAFKA", "/ca.pem", "/both.pem", "")
    assert client_options(KafkaSecurity(files, None, Sasl("SCRAM-SHA-512", "me", "secret"))) == {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "/ca.pem",
        "ssl.certificate.location": "/both.pem",
        "ssl.key.location": "/both.pem",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": "secret",
    }
    plain = client_options(KafkaSecurity(None, None, Sasl("PLAIN", "me", "secret")))
    assert plain["security.protocol"] == "SASL_PLAINTEXT"
    # And the CAs of this machine are those of the other connections, by default
    assert client_options(KafkaSecurity(TlsFiles("KAFKA", "", "", "")))["security.protocol"] == "SSL"


# --- Tokens of OAUTHBEARER -----------------------------------------------------------------------------


class ScriptedTokens:
    """Gives the token that was set."""

    name = "KAFKA_OAUTH_URL=https://id.example/token"

    def __init__(self) -> None:
        self.current: Token | None = None

    def token(self, seconds_max: float) -> Token:
        if self.current is None:
            raise TokenError("it does not answer")
        return self.current

    def reject(self, token: Token, reason: str) -> None:
        raise AssertionError(token, reason)


def appended(rig: Rig) -> bool:
    try:
        rig.writer.append([(0, b"x")])
    except LogUnavailableError as error:
        if "it waits for an access token" not in str(error):
            raise
        return False
    return True


@pytest.fixture
def tokens() -> ScriptedTokens:
    return ScriptedTokens()


@pytest.fixture
def token_rig(monkeypatch: pytest.MonkeyPatch, tokens: ScriptedTokens) -> Rig:
    """With a library that waits for its token when it is made, as the real one does."""
    security = KafkaSecurity(sasl=Sasl("OAUTHBEARER", tokens=tokens, extensions={"logicalCluster": "lkc-1"}))
    made = Rig(monkeypatch, security)
    tokens.current = Token("first", 0, made.clock.monotonic() + 100)

    def new_library(options: dict[str, Any], logger: object) -> Library:
        library = made._new_library(options, logger)
        try:
            library.token = options["oauth_cb"]("")
        except TokenError as error:
            problem = KafkaError(KafkaError._AUTHENTICATION, "OAuth token not set within 10 seconds")
            raise KafkaException(problem) from error
        return library

    monkeypatch.setattr(confluent_kafka, "Producer", new_library)
    wait_until(lambda: appended(made), "there is a producer")
    return made


def test_the_library_gets_its_token_with_its_end_by_the_wall_clock(token_rig: Rig) -> None:
    text, expires_at, principal, extensions = token_rig.library.token
    assert (text, principal, extensions) == ("first", "", {"logicalCluster": "lkc-1"})
    assert 97 < expires_at - token_rig.clock.now() <= 100
    assert "sasl.username" not in token_rig.library.options


def test_a_producer_whose_token_has_expired_is_replaced_once_there_is_another(
    token_rig: Rig, tokens: ScriptedTokens
) -> None:
    # Given a library that does not ask in time: it has failed before, or the wall clock was set back
    first, tokens.current = token_rig.library, None
    token_rig.clock.advance(101)
    # While no other token is there, its connections may still be good
    assert appended(token_rig)
    assert token_rig.library is first
    tokens.current = Token("second", 0, token_rig.clock.monotonic() + 100)
    wait_until(lambda: appended(token_rig), "there is another producer")
    assert token_rig.library.token[0] == "second"
    assert first.is_purged


def test_a_library_that_gets_no_token_is_made_again(
    token_rig: Rig, tokens: ScriptedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Any = confluent_kafka.Producer
    problem = KafkaException(KafkaError(KafkaError._AUTHENTICATION, "OAuth token not set within 10 seconds"))

    def refuse(_options: dict[str, Any], logger: object) -> Library:
        raise problem

    monkeypatch.setattr(confluent_kafka, "Producer", refuse)
    token_rig.fail()
    said: list[str] = []

    def is_said() -> bool:
        with pytest.raises(LogUnavailableError) as raised:
            token_rig.writer.prepare()
        said.append(str(raised.value))
        return "OAuth token not set" in said[-1]

    wait_until(is_said, "the reason is said")
    monkeypatch.setattr(confluent_kafka, "Producer", make)
    tokens.current = Token("third", 0, token_rig.clock.monotonic() + 100)

    def goes_on() -> bool:
        try:
            token_rig.writer.prepare()
        except LogUnavailableError:
            return False
        return True

    wait_until(goes_on, "there is a producer again")


def test_a_producer_that_was_closed_while_it_was_made_is_let_go(token_rig: Rig, tokens: ScriptedTokens) -> None:
    tokens.current = None
    made = ConfluentProducer(["broker:9092"], KafkaSecurity(sasl=Sasl("OAUTHBEARER", tokens=tokens)), token_rig.clock)
    made.close(0.1)
    tokens.current = Token("late", 0, token_rig.clock.monotonic() + 100)
    with pytest.raises(ProducerError, match="it is closed"):
        made.partitions_for("t", 0.1)


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"needs the package confluent-kafka.*`pip install .*confluent.*`"):
        Settings(event_log_url="kafka://localhost:9092", kafka_client="confluent")
    # A log that is not on Kafka does not need it
    Settings(kafka_client="confluent")
    # Nor does the other library
    Settings(event_log_url="kafka://localhost:9092")
