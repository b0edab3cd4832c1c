"""Commands for API keys: what is stored, what is mirrored, and what is said, whichever server is away."""

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery.app.control import Control

from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlEvents, MemoryControlStore, MemoryKeyMirror, MemoryServer
from pipeline.errors import SinkUnavailableError
from pipeline.event_text import event_text
from pipeline.keys import ApiKey, StoredKeys, digest_of, make_key
from pipeline.settings import Settings
from tasks import key_commands, keys, remote, remote_client
from tasks.commands import CommandError
from tasks.sync_keys import sync_keys


class Operators:
    """What PostgreSQL keeps."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.changes = 0
        self.limits: dict[str, float | None] = {}
        self.is_unavailable = False

    def load_keys(self) -> StoredKeys:
        return StoredKeys(self.keys_version(), tuple(self.keys.values()))

    def keys_version(self) -> str:
        self._answer()
        return f"v{self.changes}"

    def save_key(self, key: ApiKey) -> None:
        self._answer()
        self.keys[key.id] = key
        self.changes += 1

    def delete_keys(self, ids: Sequence[str]) -> int:
        self._answer()
        found = [self.keys.pop(one) for one in ids if one in self.keys]
        self.changes += bool(found)
        return len(found)

    def save_account_limit(self, asked: Any) -> None:
        self._answer()
        self.limits[asked.account] = asked.rate

    def _answer(self) -> None:
        if self.is_unavailable:
            raise SinkUnavailableError("PostgreSQL is away")


class Parts(SimpleNamespace):
    """A worker's context, with a control store in memory."""

    def __init__(self, **changes: Any) -> None:
        settings, server = Settings(**changes), MemoryServer()
        super().__init__(
            settings=settings,
            server=server,
            clock=ManualClock(),
            control_store=MemoryControlStore(settings, server),
            events=MemoryControlEvents(settings, server),
            keys=MemoryKeyMirror(settings, server),
            operators=Operators(),
            storage=SimpleNamespace(close=lambda: None),
        )
        self.control_store.restore_account_limits([], actor="controller")
        sync_keys(self)  # type: ignore[arg-type]

    def mirrored(self) -> set[str]:
        found = self.keys.load()
        return set() if found is None else {key.id for key in found.keys}


def create(parts: Any, name: str = "shop", **options: Any) -> tuple[str, str]:
    """The id of a new key, and what was said."""
    key, key_id = make_key()
    asked = {"key_id": key_id, "digest": digest_of(key), "why": "a test"} | options
    return key_id, key_commands.create(parts, "ann@host", name, **asked)


def test_a_key_is_stored_mirrored_listed_and_revoked() -> None:
    parts: Any = Parts()
    key_id, said = create(parts, protocols=["otlp", "loki"], days=2, rate=500.0)
    assert said.startswith(
        f"API key {key_id} was made for shop, by ann@host: a test. For loki, otlp, until 2023-11-16 22:13 UTC. "
        "Account key:shop: at most 500/s, set by ann@host"
    )
    assert parts.mirrored() == set(parts.operators.keys) == {key_id}
    assert parts.operators.limits == {"key:shop": 500.0}
    assert event_text(parts.events.last(1)[0]) == f"API key {key_id} made for shop"
    # When it is listed, then neither the key nor its hash is shown
    words, [document] = key_commands.listed(parts)
    assert words.startswith(f"{key_id}  shop                 For loki, otlp, until 2023-11-16 22:13 UTC; at most 500/s")
    assert (document["id"], document["account"], document["rate"]) == (key_id, "key:shop", 500.0)
    assert parts.operators.keys[key_id].digest not in words + json.dumps(document)
    parts.clock.advance(2 * 86_400)
    assert "EXPIRED at" in key_commands.listed(parts)[0]
    # When it is revoked by its id
    said = key_commands.revoke(parts, "bob@host", key_id, "lost")
    assert said == f"API keys revoked by bob@host: {key_id} of shop: lost."
    assert parts.mirrored() == set(parts.operators.keys) == set()
    assert event_text(parts.events.last(1)[0]) == f"API keys revoked: {key_id} of shop"
    assert key_commands.listed(parts) == ("There are no API keys.", [])
    with pytest.raises(CommandError, match="no API key has the id or the name 'shop'"):
        key_commands.revoke(parts, "bob@host", "shop", "again")


@pytest.mark.parametrize("is_away", [True, False])
def test_without_what_redis_knows_the_keys_are_listed_and_their_limits_are_unknown(is_away: bool) -> None:
    parts: Any = Parts(account_limits="key:other=7")
    limited, other = create(parts, rate=500.0)[0], create(parts, "other")[0]
    if is_away:
        parts.server.is_unavailable = True
    else:
        parts.server.flush()
    words, documents = key_commands.listed(parts)
    of_other, of_limited, last = words.splitlines()
    assert of_limited.startswith(limited)
    assert "no limit" not in of_limited
    assert "limit unknown" in of_limited
    assert "at most 7/s" in of_other
    assert last == "What operators set for accounts is unknown: Redis was flushed, or can't be read."
    assert [document["id"] for document in documents] == [other, limited]


def test_a_key_may_have_a_highest_level() -> None:
    parts: Any = Parts(admission_levels=True)
    key_id, said = create(parts, level="warn", protocols=["otlp"])
    assert "For otlp, up to the level warn, without an end." in said
    assert "ADMISSION_LEVELS" not in said
    assert parts.operators.keys[key_id].level == "warn"
    words, [document] = key_commands.listed(parts)
    assert "For otlp, up to the level warn, without an end; no limit; made by " in words
    assert document["level"] == "warn"
    # And a command says that a level has no effect while levels are off
    parts = Parts()
    assert "ADMISSION_LEVELS is off: the level has no effect" in create(parts, level="debug")[1]
    assert key_commands.listed(parts)[1][0]["level"] == "debug"


def test_a_name_stands_for_all_its_keys() -> None:
    parts: Any = Parts()
    first, second, other = create(parts)[0], create(parts)[0], create(parts, "other")[0]
    said = key_commands.revoke(parts, "bob@host", "shop", "w")
    assert all(key_id in said for key_id in (first, second))
    assert parts.mirrored() == set(parts.operators.keys) == {other}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a b", {}, "no name of a key"),
        ("x" * 64, {}, "no name of a key"),
        ("shop", {"protocols": ["otlp", "http"]}, "http: the protocols are elasticsearch, events"),
        ("shop", {"level": "fatal"}, "'fatal' is no level: debug, info, warn, error"),
        ("shop", {"days": 0.0}, "the time is 0 days"),
        ("shop", {"days": float("nan")}, "the time is nan days"),
        ("shop", {"digest": "x"}, "the key is missing"),
    ],
)
def test_invalid_arguments_make_nothing(name: str, options: dict[str, Any], says: str) -> None:
    parts: Any = Parts()
    with pytest.raises(CommandError, match=says):
        create(parts, name, **options)
    assert parts.operators.keys == {}


def test_their_number_is_bounded() -> None:
    parts: Any = Parts(api_keys_max=1)
    create(parts)
    with pytest.raises(CommandError, match=r"1 API keys already \(API_KEYS_MAX\)"):
        create(parts)


def test_without_postgresql_no_key_is_made_and_one_is_revoked_at_once() -> None:
    parts: Any = Parts()
    key_id, _ = create(parts)
    parts.operators.is_unavailable = True
    with pytest.raises(SinkUnavailableError):
        create(parts, "other")
    said = key_commands.revoke(parts, "bob@host", "shop", "lost")
    assert "PostgreSQL could not delete them" in said
    assert "Ingest processes know it once" not in said  # they know it already
    assert parts.mirrored() == set()
    # When PostgreSQL is back, the next tick deletes it there, and not the other way round
    parts.operators.is_unavailable = False
    assert sync_keys(parts)
    assert parts.mirrored() == set(parts.operators.keys) == set()
    assert parts.keys.load().revoked == ()
    assert not sync_keys(parts)
    assert key_id not in parts.operators.keys


def test_nothing_is_said_to_be_revoked_if_redis_was_flushed_and_postgresql_ends_in_between() -> None:
    parts: Any = Parts()
    key_id, _ = create(parts)
    parts.server.flush()
    load = parts.operators.load_keys

    def load_and_end() -> StoredKeys:
        found: StoredKeys = load()
        parts.operators.is_unavailable = True
        return found

    parts.operators.load_keys = load_and_end
    with pytest.raises(CommandError, match="nothing was revoked"):
        key_commands.revoke(parts, "bob@host", "shop", "lost")
    assert key_id in parts.operators.keys


def test_without_redis_a_key_is_made_and_revoked_in_postgresql_and_the_tick_copies_it() -> None:
    parts: Any = Parts()
    first, _ = create(parts)
    parts.server.is_unavailable = True
    second, said = create(parts, "other")
    assert "once PostgreSQL and Redis both answer" in said
    assert "once PostgreSQL and Redis both answer" in key_commands.revoke(parts, "bob@host", "shop", "lost")
    parts.operators.is_unavailable = True
    with pytest.raises(CommandError, match="neither PostgreSQL nor Redis has the keys now"):
        key_commands.revoke(parts, "bob@host", "other", "lost")
    parts.server.is_unavailable = parts.operators.is_unavailable = False
    assert parts.mirrored() == {first}
    assert sync_keys(parts)
    assert parts.mirrored() == set(parts.operators.keys) == {second}


def test_a_flush_and_an_old_file_of_redis_bring_nothing_back() -> None:
    parts: Any = Parts()
    first, second = create(parts)[0], create(parts, "other")[0]
    old = parts.server.remember()
    key_commands.revoke(parts, "bob@host", first, "lost")
    # When Redis comes back with an older file, in which the key was valid
    parts.server.restart(old)
    assert parts.mirrored() == {first, second}
    assert sync_keys(parts)
    assert parts.mirrored() == set(parts.operators.keys) == {second}
    parts.server.flush()
    assert sync_keys(parts)
    assert parts.mirrored() == {second}


def test_a_copy_that_another_process_overtakes_is_tried_again() -> None:
    parts: Any = Parts()
    first, _ = create(parts)
    parts.server.flush()
    load = parts.keys.load
    others = iter([True, False])

    def overtaken() -> Any:
        found = load()
        if next(others, False):
            parts.keys.replace([], "another", instead_of=None)
        return found

    parts.keys.load = overtaken
    assert sync_keys(parts)
    assert parts.mirrored() == {first}


# --- The command lines ------------------------------------------------------------------------------------------------


def test_celery_s_commands_take_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: Any = Parts()
    monkeypatch.setattr(remote, "_done", lambda state, ticket, work: {"ok": work(parts)})
    monkeypatch.setattr(remote, "_answered", lambda state, ticket, work: work(parts))
    key, key_id = make_key()
    words = ("shop", "--rate", "5", "--protocols=otlp,loki", "--level", "info", "--days", "3", "for", "the", "shop")
    said = remote.keys_create(None, words=words, key_id=key_id, digest=digest_of(key), by="ann@host")["ok"]
    assert "for shop, by ann@host: for the shop. For loki, otlp, up to the level info, until " in said
    assert parts.operators.limits == {"key:shop": 5.0}
    assert key_id in remote.inspect_keys(None)["ok"]
    assert "a name is missing, or an option has no value" in remote.keys_create(None, words=("shop", "--rate"))["error"]
    assert "a name is missing, or an option has no value" in remote.keys_create(None)["error"]
    assert "an id or a name is missing" in remote.keys_revoke(None)["error"]
    assert key_id in remote.keys_revoke(None, words=("shop", "lost"), by="bob@host")["ok"]


def test_the_key_is_made_by_the_sender_and_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    shown: list[Any] = []

    def broadcast(self: Any, command: str, arguments: Any = None, **options: Any) -> None:
        sent.append((command, arguments))
        options["callback"]({"control@host": {"ok": "API key made."}})

    monkeypatch.setattr(Control, "broadcast", broadcast)
    control = remote_client.SluiceControl.__new__(remote_client.SluiceControl)
    control.app = SimpleNamespace(sluice_settings=Settings())  # type: ignore[assignment]
    control.broadcast("keys_create", {"words": ["shop"]}, callback=shown.append)
    [(command, arguments)] = sent
    [answer] = shown
    key = answer["control@host"]["ok"].rpartition(" ")[2]
    assert (command, arguments["digest"]) == ("keys_create", digest_of(key))
    assert key not in str(sent)
    assert key.startswith(f"slc_{arguments['key_id']}_")

    # And where no key was made, none is shown
    def refuse(self: Any, command: str, arguments: Any = None, **options: Any) -> None:
        options["callback"]({"control@host": {"error": "no"}})

    monkeypatch.setattr(Control, "broadcast", refuse)
    with pytest.raises(click.ClickException, match=r"^no$"):
        control.broadcast("keys_create", {"words": ["shop"]}, callback=shown.append)
    assert len(shown) == 1


def test_a_reason_forges_no_line_of_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts: Any = Parts()
    monkeypatch.setattr(keys, "WorkerContext", lambda settings: parts)
    assert keys.main(["create", "shop", "--why", "x\ndeadbeef  root  For all"]) == 0
    [stored] = parts.operators.keys.values()
    assert stored.why == "x\\ndeadbeef  root  For all"
    # And none that an earlier version stored
    parts.operators.keys[stored.id] = replace(stored, why="x\ndeadbeef", actor="ann\n@host")
    words, [document] = key_commands.listed(parts)
    assert "\n" not in words + document["why"] + document["by"]


def test_the_command_line_prints_the_key_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts: Any = Parts()
    monkeypatch.setattr(keys, "WorkerContext", lambda settings: parts)
    assert (
        keys.main(["create", "shop", "--rate", "7", "--protocols", "otlp, loki", "--level", "warn", "--why", "a test"])
        == 0
    )
    said = capsys.readouterr()
    key = said.out.strip()
    [stored] = parts.operators.keys.values()
    assert stored.digest == digest_of(key)
    assert stored.protocols == ("loki", "otlp")
    assert stored.level == "warn"
    assert "was made for shop" in said.err
    assert key not in said.err
    assert keys.main(["list"]) == 0
    assert stored.id in capsys.readouterr().out
    assert keys.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == stored.id
    assert keys.main(["revoke", stored.id]) == 0
    assert "revoked by" in capsys.readouterr().out
    assert keys.main(["revoke", stored.id]) == 1
    assert "no API key has the id" in capsys.readouterr().err
    parts.operators.is_unavailable = True
    assert keys.main(["create", "shop"]) == 1
    said = capsys.readouterr()
    assert (said.out, "PostgreSQL is away" in said.err) == ("", True)
