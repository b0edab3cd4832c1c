"""Keys for signed messages, what is refused about them by name, and commands that are sent again."""

import stat
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery.app.control import Control
from celery.exceptions import SecurityError
from kombu import Connection
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import register

from beat_schedule import beat_schedule
from pipeline.errors import SettingsError
from pipeline.names import DropReason
from pipeline.settings import Settings
from tasks import remote_client, signing
from tasks.app import make_app
from tasks.consumer import OURS
from tasks.signing import COMMAND_SECONDS_MAX, SENT, Freshness

PREFIX = Settings().key_prefix
HERE = {"prefix": PREFIX}


def signed(folder: Path, name: str = "worker") -> Settings:
    key, certificate = signing.create(name, folder)
    return Settings(
        signing_key_file=str(key), signing_cert_file=str(certificate), signing_cert_folder=str(certificate.parent)
    )


def refused(settings: Settings) -> str:
    with pytest.raises(SettingsError) as caught:
        signing.load(settings)
    return str(caught.value)


def test_keys_are_made_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert signing.main(["create", "ann", str(tmp_path)]) == 0
    lines = dict(line.split("=") for line in capsys.readouterr().out.splitlines())
    key = Path(lines["SIGNING_KEY_FILE"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "PRIVATE" not in Path(lines["SIGNING_CERT_FILE"]).read_text()
    settings = Settings.from_environ(lines)
    serializer = signing.load(settings)
    assert serializer.deserialize(serializer.serialize({"a": [1]})) == {"a": [1]}
    # A key is never replaced
    assert signing.main(["create", "ann", str(tmp_path)]) == 1
    assert "exists" in capsys.readouterr().err
    assert signing.main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("ann.crt: expires in 3649 days, ann ")
    for wrong in (["create", "../x", str(tmp_path)], ["create", "x", str(tmp_path), "--days", "0"]):
        with pytest.raises(SystemExit):
            signing.main(wrong)


def test_without_the_settings_nothing_is_signed() -> None:
    assert signing.celery_settings(Settings()) == {}
    assert signing.stamped(None, Settings()) == {}
    assert signing.stamped({"a": 1}, Settings()) == {"a": 1}


def test_some_of_the_settings_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="SIGNING_CERT_FILE and SIGNING_CERT_FOLDER is missing"):
        Settings(signing_key_file="a.key")


def test_files_that_can_not_be_used_are_refused_by_name(tmp_path: Path) -> None:
    settings, other = signed(tmp_path), signed(tmp_path / "other", "other")
    assert "SIGNING_KEY_FILE" in refused(replace(settings, signing_key_file="/nowhere"))
    assert "SIGNING_CERT_FOLDER" in refused(replace(settings, signing_cert_folder="/nowhere"))
    assert "not the key of" in refused(replace(settings, signing_key_file=other.signing_key_file))
    assert "not in SIGNING_CERT_FOLDER" in refused(
        replace(settings, signing_cert_file=other.signing_cert_file, signing_key_file=other.signing_key_file)
    )
    assert "SIGNING_CERT_FILE=" in refused(replace(settings, signing_cert_file=settings.signing_key_file))
    (tmp_path / "trusted" / "notes.txt").write_text("who is who")
    assert "notes.txt' is no certificate" in refused(settings)


def test_an_operators_certificate_that_expired_stops_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, operator = signed(tmp_path), signed(tmp_path, "ann")
    message = signing.load(operator).serialize({"a": 1})
    # Given that ann's certificate is replaced by one that has expired, with a file that is being written beside it
    for path in (tmp_path / "ann.key", tmp_path / "trusted" / "ann.crt"):
        path.unlink()
    signing.create("ann", tmp_path, days=0)
    (tmp_path / "trusted" / ".ann.crt.swp").write_text("")
    # Then a process of others starts, and names it
    serializer = signing.load(settings)
    assert "trusted/ann.crt has expired" in capsys.readouterr().err
    # And refuses what ann signs, as ann does
    with pytest.raises(SecurityError):
        serializer.deserialize(message)
    assert refused(operator) == "SIGNING_CERT_FILE has expired: make another key"


def test_what_is_not_signed_is_called_so() -> None:
    on = Settings(signing_key_file="k", signing_cert_file="c", signing_cert_folder="f")
    for error in (ContentDisallowed("json"), DecodeError("Bad signature")):
        assert signing.reason_of(error, on) is DropReason.UNSIGNED
        assert signing.reason_of(error, Settings()) is DropReason.MALFORMED
    assert signing.reason_of(KeyError("task"), on) is DropReason.MALFORMED


# --- Commands that are sent again -----------------------------------------------------------------------------------


class Hands:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.wall, self.mono = 1000.0, 0.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def sleep(self, seconds: float) -> None:
        raise NotImplementedError


def test_a_command_is_carried_out_once_and_not_late() -> None:
    clock = Hands()
    freshness = Freshness(clock)
    sent = {"at": 1000.0, "id": "one"} | HERE
    assert freshness.problem(sent, PREFIX) is None
    assert freshness.problem(dict(sent), PREFIX) == "it was carried out before"
    assert freshness.problem({"at": 1000.0, "id": "two"} | HERE, PREFIX) is None
    clock.wall = clock.mono = 1000.0 + COMMAND_SECONDS_MAX + 1
    assert "it was sent 61 s ago" in str(freshness.problem({"at": 1000.0, "id": "three"} | HERE, PREFIX))
    assert "sent -61 s ago" in str(freshness.problem({"at": clock.wall + 61, "id": "four"} | HERE, PREFIX))


def test_a_command_to_one_system_is_not_carried_out_by_another() -> None:
    on = Settings(signing_key_file="k", signing_cert_file="c", signing_cert_folder="f", key_prefix="shop:")
    sent = signing.stamped(None, on)[SENT]
    assert "was sent to the system with KEY_PREFIX='shop:'" in str(Freshness().problem(sent, PREFIX))
    assert Freshness().problem(sent, "shop:") is None


@pytest.mark.parametrize("sent", [None, {}, {"at": "x", "id": "1"}, {"at": 1.0}, 7, {"at": 1.0, "id": "1"}])
def test_a_command_without_its_time_is_refused(sent: Any) -> None:
    assert Freshness(Hands()).problem(sent, PREFIX) == "it does not say when and to which system it was sent"


def test_a_command_whose_time_is_no_number_of_this_world_is_refused() -> None:
    assert Freshness(Hands()).problem({"at": float("nan"), "id": "1"} | HERE, PREFIX) is not None


def test_what_was_seen_is_forgotten_when_it_is_too_old_anyway() -> None:
    clock = Hands()
    freshness = Freshness(clock)
    for turn in range(1000):
        clock.wall, clock.mono = 1000.0 + turn, float(turn)
        assert freshness.problem({"at": clock.wall, "id": str(turn)} | HERE, PREFIX) is None
    assert len(freshness._seen) <= 2 * COMMAND_SECONDS_MAX + 1


def test_a_signed_command_says_when_it_was_sent() -> None:
    on = Settings(signing_key_file="k", signing_cert_file="c", signing_cert_folder="f")
    first, second = signing.stamped({"a": 1}, on), signing.stamped({"a": 1}, on)
    assert first["a"] == 1
    assert first[SENT]["id"] != second[SENT]["id"]
    assert Freshness().problem(first[SENT], on.key_prefix) is None


def test_a_recorded_answer_is_no_answer_to_another_command(tmp_path: Path) -> None:
    serializer = signing.load(signed(tmp_path))
    name = signing.SERIALIZER
    shown: list[Any] = []
    register(name, serializer.serialize, serializer.deserialize, "application/data", "utf-8")
    with Connection("memory://") as connection:
        channel: Any = connection.default_channel
        mailbox: Any = signing.SluiceMailbox(uuid.uuid4().hex, connection=connection, accept=[name], serializer=name)
        queue = mailbox.reply_queue(channel)
        queue.declare()

        def answer(ticket: str) -> Any:
            place = mailbox.reply_exchange.name, mailbox.oid
            mailbox._publish_reply({"c@h": {"ok": ticket}}, *place, ticket, channel=channel, serializer=name)
            return channel._get(queue.name)

        def collect(ticket: str, *messages: Any) -> Any:
            for message in messages:
                channel._put(queue.name, message)
            return mailbox._collect(ticket, timeout=0.1, callback=shown.append)

        # When somebody sends the answer to one command again, as that to another, which a worker answers later
        recorded = answer("one")
        recorded["headers"]["ticket"] = "two"
        # Then it is no answer
        assert collect("two", recorded) == []
        assert collect("two", recorded, answer("two")) == [{"c@h": {"ok": "two"}}]
        # Also if it arrives while another command is waited for
        assert collect("three", recorded, answer("three")) == [{"c@h": {"ok": "three"}}]
        assert collect("two") == []
        assert shown == [{"c@h": {"ok": "two"}}, {"c@h": {"ok": "three"}}]


def _client(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any]) -> remote_client.SluiceControl:
    """The client side, to which workers give these answers."""

    def broadcast(self: Any, command: str, arguments: Any = None, **options: Any) -> None:
        for number, answer in enumerate(answers):
            options["callback"]({f"worker-{number}@host": answer})

    monkeypatch.setattr(Control, "broadcast", broadcast)
    client = remote_client.SluiceControl.__new__(remote_client.SluiceControl)
    client.app = SimpleNamespace(sluice_settings=Settings())  # type: ignore[assignment]
    return client


def test_a_worker_with_a_wrong_clock_does_not_answer_for_the_one_that_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = {"error": "refused: it was sent 90 s ago", signing.REFUSED: True}
    shown: list[Any] = []
    _client(monkeypatch, refusal, {"ok": "paused"}).broadcast("pause_consumption", callback=shown.append)
    assert shown == [{"worker-1@host": {"ok": "paused"}}]
    # And if no worker acts, the reason is shown
    with pytest.raises(click.ClickException, match="it was sent 90 s ago"):
        _client(monkeypatch, refusal, {remote_client.NOT_MINE: True}).broadcast("pause_consumption")


def test_a_refused_command_is_marked_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Settings(signing_key_file="k", signing_cert_file="c", signing_cert_folder="f")
    mailbox: Any = SimpleNamespace(clock=SimpleNamespace(adjust=None))
    state: Any = SimpleNamespace(app=SimpleNamespace(sluice_settings=on))
    node = signing.SluiceNode("c@h", state, handlers={"ping": lambda state: {"ok": "pong"}}, mailbox=mailbox)
    command = signing.stamped(None, on)
    assert node.handle("ping", command) == {"ok": "pong"}
    assert node.handle("ping", command) == {"error": "refused: it was carried out before", signing.REFUSED: True}


def test_no_argument_of_a_command_forges_a_line_or_reaches_a_terminal_raw() -> None:
    mailbox: Any = SimpleNamespace(clock=SimpleNamespace(adjust=None))
    state: Any = SimpleNamespace(app=SimpleNamespace(sluice_settings=Settings()))
    node = signing.SluiceNode("c@h", state, handlers={"pause": lambda state, **given: given}, mailbox=mailbox)
    given = {"by": "eve\nroot", "words": ["a\r\n00:00", "\x1b[31m", 7], "rate": 1.5, "more": {"x": ["\u2028"]}}
    assert node.handle("pause", given) == {
        "by": "eve\\nroot", "words": ["a\\r\\n00:00", "\\x1b[31m", 7], "rate": 1.5, "more": {"x": ["\\u2028"]},
    }  # fmt: skip


def test_no_task_does_what_only_an_operator_requests() -> None:
    # A recorded tick can be sent again under the name of each other task without arguments.
    app = make_app(Settings())
    app.loader.import_default_modules()
    ticks = {entry["task"] for entry in beat_schedule(Settings(retention_days=1)).values()}
    assert {name for name in app.tasks if name.startswith(OURS)} == {"sluice.drain", *ticks}
