"""Operators' commands for limits of accounts: their arguments, their answers, and what PostgreSQL keeps."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlEvents, MemoryControlStore, MemoryServer, MemoryThrottle
from pipeline.errors import SinkUnavailableError
from pipeline.event_text import event_text, limit_text
from pipeline.flow.refusals import Refusals, Refused
from pipeline.ports.control import OperatorLimit
from pipeline.ports.operator_store import OperatorState
from pipeline.settings import Settings
from tasks import commands, remote
from tasks.persist_overrides import persist_changes

ACCOUNT = "192.0.2.1"


class Operators:
    """What PostgreSQL keeps."""

    def __init__(self) -> None:
        self.accounts: dict[str, OperatorLimit] = {}
        self.is_unavailable = False

    def load(self) -> OperatorState:
        self._answer()
        return OperatorState(accounts=list(self.accounts.values()))

    def save_account_limit(self, asked: OperatorLimit) -> None:
        self._answer()
        self.accounts[asked.account] = asked

    def delete_account_limit(self, account: str) -> None:
        self._answer()
        self.accounts.pop(account, None)

    def _answer(self) -> None:
        if self.is_unavailable:
            raise SinkUnavailableError("PostgreSQL is away")


class Parts(SimpleNamespace):
    """A worker's context, with a control store in memory."""

    def __init__(self, **changes: Any) -> None:
        settings, clock, server = Settings(**changes), ManualClock(), MemoryServer()
        super().__init__(
            settings=settings,
            clock=clock,
            control_store=MemoryControlStore(settings, server),
            events=MemoryControlEvents(settings, server),
            operators=Operators(),
            throttle=MemoryThrottle(settings, server),
            server=server,
        )
        self.control_store.restore([], actor="controller")
        self.control_store.restore_account_limits([], actor="controller")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Parts(account_limits=f"{ACCOUNT}=50", admission_shares=True)
    # What the worker would do: run it, without tickets and threads
    monkeypatch.setattr(remote, "_done", lambda state, ticket, work: {"ok": work(made)})
    monkeypatch.setattr(remote, "_answered", lambda state, ticket, work: work(made))
    return made


def set_limit(*words: str) -> Any:
    return remote.set_account_limit(None, words=words, by="ann@host")


def test_a_limit_is_set_kept_shown_and_ended(parts: Any) -> None:
    said = set_limit(ACCOUNT, "100.5", "--weight", "2", "a", "contract")["ok"]
    assert said == (
        "Account 192.0.2.1: at most 100.5/s, weight 2, set by ann@host: a contract. This survives a Redis flush."
    )
    asked = parts.control_store.state().accounts[ACCOUNT]
    assert (asked.rate, asked.weight, asked.actor, asked.why) == (100.5, 2.0, "ann@host", "a contract")
    assert parts.operators.accounts == {ACCOUNT: asked}
    shown = remote.inspect_account_limits(None)
    assert shown["ok"].startswith("192.0.2.1                at most 100.5/s, weight 2, set by ann@host at ")
    [document] = shown["document"]
    assert (document["account"], document["rate"], document["by"]) == (ACCOUNT, 100.5, "ann@host")
    assert event_text(parts.events.last(1)[0]) == "Account 192.0.2.1: at most 100.5/s, weight 2"
    # When it ends, the settings apply again
    said = remote.clear_account_limit(None, words=(ACCOUNT, "over"), by="bob@host")["ok"]
    assert said == "The settings apply again for account 192.0.2.1: at most 50/s."
    assert parts.operators.accounts == {}
    assert parts.control_store.state().accounts == {}
    assert remote.inspect_account_limits(None)["ok"] == "192.0.2.1                at most 50/s, settings"
    assert (
        "No operator's limit was in force: the settings apply for account"
        in remote.clear_account_limit(None, words=(ACCOUNT,))["ok"]
    )
    assert event_text(parts.events.last(1)[0]) == "Account 192.0.2.1: the settings apply again"


@pytest.mark.parametrize("words", [("--weight=3",), ("--weight", "3")])
def test_none_lifts_the_limit_of_the_settings(parts: Any, words: tuple[str, ...]) -> None:
    set_limit("2001:db8::7", "none", *words)
    asked = parts.control_store.state().accounts["2001:db8::/64"]
    assert (asked.rate, asked.weight, asked.why) == (None, 3.0, "no reason given")


@pytest.mark.parametrize(
    "words", [(), (ACCOUNT,), (ACCOUNT, "fast"), (ACCOUNT, "5", "--weight"), (ACCOUNT, "5", "--weight", "much")]
)
def test_missing_arguments_are_named(parts: Any, words: tuple[str, ...]) -> None:
    error = set_limit(*words)["error"]
    assert error.startswith(
        "an account, and a number or none are needed: celery -A tasks.app control set_account_limit"
    )
    assert "an account is missing" in remote.clear_account_limit(None)["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("me", "5"), "'me' is no account"),
        ((ACCOUNT, "0"), "the rate is 0; it takes 0.01 to 1e+07 events/s"),
        ((ACCOUNT, "nan"), "the rate is nan"),
        ((ACCOUNT, "5", "--weight", "101"), "the weight is 101; it takes 0.01 to 100"),
    ],
)
def test_invalid_figures_are_refused(parts: Any, words: tuple[str, ...], says: str) -> None:
    with pytest.raises(commands.CommandError, match=says.replace("+", r"\+")):
        set_limit(*words)
    assert parts.control_store.state().accounts == {}


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.01, "0.01/s"), (0.25, "0.25/s"), (2.5, "2.5/s"), (12.5, "12.5/s"), (1000.0, "1,000/s")]
)
def test_a_limit_is_shown_as_it_was_set(rate: float, expected: str) -> None:
    assert limit_text(rate, None) == f"at most {expected}"


def test_the_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = Parts(account_limits_max=1)
    commands.set_account_limit(made, "ann", "192.0.2.1", rate=5.0, why="w")
    with pytest.raises(commands.CommandError, match=r"1 accounts have a limit .* \(ACCOUNT_LIMITS_MAX\)"):
        commands.set_account_limit(made, "ann", "192.0.2.2", rate=5.0, why="w")


def test_a_weight_without_shares_is_named_as_useless() -> None:
    made: Any = Parts()
    assert "no effect while ADMISSION_SHARES is off" in commands.set_account_limit(
        made, "a", ACCOUNT, rate=5.0, weight=2.0, why="w"
    )
    assert "no effect" not in commands.set_account_limit(made, "a", ACCOUNT, rate=5.0, why="w")


def test_what_postgresql_missed_is_stored_once_it_is_back(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    # Given an account with an old limit, and changes while PostgreSQL is away
    set_limit("192.0.2.8", "8")
    set_limit("192.0.2.9", "9")
    parts.operators.is_unavailable = True
    with caplog.at_level(logging.WARNING):
        assert "PostgreSQL could not store this" in set_limit(ACCOUNT, "5")["ok"]
        assert "PostgreSQL could not store the end" in remote.clear_account_limit(None, words=("192.0.2.9",))["ok"]
        set_limit("192.0.2.8", "88")
    # When it is back
    parts.operators.is_unavailable = False
    assert sorted(persist_changes(parts).changed) == [
        "limit of account 192.0.2.1", "limit of account 192.0.2.8", "limit of account 192.0.2.9 ended",
    ]  # fmt: skip
    assert parts.operators.accounts == parts.control_store.state().accounts
    assert not persist_changes(parts).changed


def test_nothing_is_deleted_while_the_limits_are_unknown(parts: Any) -> None:
    # Given a flush, after which an earlier version restored the pauses alone
    set_limit(ACCOUNT, "5")
    parts.server.flush()
    parts.control_store.restore([], actor="controller")
    assert not persist_changes(parts).changed
    assert set(parts.operators.accounts) == {ACCOUNT}
    assert "is unknown" in remote.inspect_account_limits(None)["ok"]


def test_inspect_throttle_shows_all_accounts_or_one(parts: Any) -> None:
    assert remote.inspect_throttle(None)["ok"] == "Nothing was refused in the last 15 minutes."
    parts.throttle.report(
        "one", {0: Refusals({ACCOUNT: {"share": Refused(2, 40)}, "192.0.2.2": {"rate": Refused(1, 5)}})}
    )
    shown = remote.inspect_throttle(None)
    assert f"{ACCOUNT}                40 events of 2 requests (share 40)" in shown["ok"]
    assert [one["account"] for one in shown["document"]["accounts"]] == [ACCOUNT, "192.0.2.2"]
    one = remote.inspect_throttle(None, account=ACCOUNT)
    assert "192.0.2.2" not in one["ok"]
    assert [found["account"] for found in one["document"]["accounts"]] == [ACCOUNT]
    with pytest.raises(commands.CommandError, match="'me' is no account"):
        remote.inspect_throttle(None, account="me")
