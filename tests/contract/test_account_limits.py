"""The contract of limits that operators set for accounts, on Redis and in memory."""

from dataclasses import replace

import pytest
import redis

from pipeline.names import KEY_ACCOUNTS, ControlEventKind
from pipeline.ports.control import AccountLimit, OperatorLimit, account_limits
from pipeline.settings import Settings
from stack.servers import Server
from support.control import ControlRig, control_settings, memory_rig, redis_rig

ONE = OperatorLimit("192.0.2.1", 100.5, 2.0, "ann@host", "a contract", 1_700_000_000.5)
NONE = OperatorLimit("2001:db8::/64", None, None, "bob@host", "trusted", 1_700_000_001.5)


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        rig = memory_rig(control_settings("redis://nowhere", account_limits_max=2))
    else:
        rig = redis_rig(control_settings(request.getfixturevalue("control_redis").url, account_limits_max=2))
    rig.store.restore([], actor="controller")
    return rig


def events(rig: ControlRig) -> list[tuple[str, str, str, dict[str, str]]]:
    return [(event.kind.value, event.actor, event.why, event.data) for event in rig.events.last(100)][1:]


def test_they_are_unknown_until_they_are_restored(rig: ControlRig) -> None:
    assert rig.store.state().accounts is None
    # Given one that was set meanwhile, and others in PostgreSQL
    newer = replace(ONE, rate=7.0)
    assert rig.store.set_account_limit(newer)
    assert rig.store.state().accounts is None
    # When they are restored, then the newer one stays
    assert rig.store.restore_account_limits([ONE, NONE], actor="controller")
    assert rig.store.state().accounts == {newer.account: newer, NONE.account: NONE}
    assert events(rig)[-1][::3] == ("state_restored", {"reasons": "account_limits"})
    # And once
    assert rig.store.clear_account_limit(NONE.account, actor="ann", why="w")
    assert not rig.store.restore_account_limits([ONE, NONE], actor="controller")
    assert rig.store.state().accounts == {newer.account: newer}


def test_nothing_to_restore_is_no_event(rig: ControlRig) -> None:
    assert rig.store.restore_account_limits([], actor="controller")
    assert rig.store.state().accounts == {}
    assert events(rig) == []


def test_the_reasons_to_pause_are_restored_without_them(rig: ControlRig) -> None:
    rig.store.restore_account_limits([ONE], actor="controller")
    rig.flush()
    # An earlier version restores only these
    assert rig.store.restore([], actor="controller")
    state = rig.store.state()
    assert (state.pauses, state.accounts) == ((), None)


def test_a_new_one_replaces_the_old_and_each_change_is_an_event(rig: ControlRig) -> None:
    rig.store.restore_account_limits([], actor="controller")
    assert rig.store.set_account_limit(ONE)
    second = replace(ONE, rate=None, weight=None, actor="bob@host", why="over")
    assert rig.store.set_account_limit(second)
    assert rig.store.state().accounts == {ONE.account: second}
    assert rig.store.clear_account_limit(ONE.account, actor="bob@host", why="done")
    assert not rig.store.clear_account_limit(ONE.account, actor="bob@host", why="done")
    assert rig.store.state().accounts == {}
    assert events(rig) == [
        ("account_limit_set", "ann@host", "a contract", {"account": ONE.account, "rate": "100.5", "weight": "2.0"}),
        ("account_limit_set", "bob@host", "over", {"account": ONE.account, "rate": "", "weight": ""}),
        ("account_limit_ended", "bob@host", "done", {"account": ONE.account}),
    ]
    kinds = {event.kind for event in rig.events.last(2)}
    assert kinds == {ControlEventKind.ACCOUNT_LIMIT_SET, ControlEventKind.ACCOUNT_LIMIT_ENDED}


def test_their_number_is_bounded_and_a_known_one_can_always_change(rig: ControlRig) -> None:
    rig.store.restore_account_limits([ONE, NONE], actor="controller")
    assert not rig.store.set_account_limit(replace(ONE, account="192.0.2.9"))
    assert rig.store.set_account_limit(replace(ONE, rate=1.0))
    assert rig.store.clear_account_limit(NONE.account, actor="ann", why="w")
    assert rig.store.set_account_limit(replace(ONE, account="192.0.2.9"))
    assert set(rig.store.state().accounts or ()) == {ONE.account, "192.0.2.9"}


def test_an_entry_that_can_not_be_read_is_left_out(control_redis: Server) -> None:
    rig = redis_rig(control_settings(control_redis.url))
    rig.store.restore_account_limits([ONE], actor="controller")
    with redis.Redis.from_url(control_redis.url) as client:
        client.hset(rig.settings.key_prefix + KEY_ACCOUNTS, "192.0.2.3", '{"rate": "of another version"}')
    assert rig.store.state().accounts == {ONE.account: ONE}


def test_what_an_operator_set_wins_over_the_settings() -> None:
    settings = Settings(account_limits="192.0.2.1=10,192.0.2.2=20,192.0.2.3=30", account_weights="192.0.2.2=3")
    asked = [OperatorLimit("192.0.2.1", 100.0, 2.0, "", "", 0.0), OperatorLimit("192.0.2.2", None, None, "", "", 0.0)]
    assert account_limits(settings, {one.account: one for one in asked}) == {
        "192.0.2.1": AccountLimit(100.0, 2.0),
        "192.0.2.2": AccountLimit(None, 3.0),
        "192.0.2.3": AccountLimit(30.0, 1.0),
    }
