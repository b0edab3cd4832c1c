"""An older and a newer version of Sluice on one control server: what either writes, the other reads or lives with."""

import json
from collections.abc import Iterator

import pytest
import redis

from pipeline.event_words import event_words
from pipeline.names import (
    KEY_BANDS,
    KEY_EVENTS,
    KEY_OVERRIDE,
    KEY_PAUSE,
    KEY_RATE,
    BreakerState,
    ControlEventKind,
    Mode,
    PauseReason,
)
from pipeline.ports.control import AskedPause, paused
from stack.servers import Server
from support.control import ControlRig, control_settings, redis_rig

UNKNOWN = PauseReason.UNKNOWN


class Newer:
    """A process of a newer version, as far as it writes."""

    def __init__(self, rig: ControlRig, client: redis.Redis) -> None:
        self._client = client
        self._prefix = rig.settings.key_prefix

    def pauses(self, name: str, entry: object) -> None:
        self._client.hset(self._prefix + KEY_PAUSE, name, entry if isinstance(entry, str) else json.dumps(entry))

    def sets(self, key: str, **fields: str) -> None:
        for field, value in fields.items():
            self._client.hset(self._prefix + key, field, value)

    def loses(self, key: str, field: str) -> None:
        self._client.hdel(self._prefix + key, field)

    def records(self, **fields: str) -> None:
        self._client.xadd(self._prefix + KEY_EVENTS, fields)  # type: ignore[arg-type]


@pytest.fixture
def rig(control_redis: Server) -> ControlRig:
    rig = redis_rig(control_settings(control_redis.url))
    rig.store.restore([], by="controller")
    return rig


@pytest.fixture
def newer(rig: ControlRig) -> Iterator[Newer]:
    with redis.Redis.from_url(rig.settings.redis_url, decode_responses=True) as client:
        yield Newer(rig, client)


def publish(rig: ControlRig) -> None:
    rig.store.publish_rate(
        base_rate=800.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, by="controller"
    )


def test_a_reason_that_nobody_here_knows_pauses_is_named_and_can_be_lifted(rig: ControlRig, newer: Newer) -> None:
    # Given reasons of a newer version, of the system and of a partition, with fields that this one does not know
    newer.pauses("quota", {"generation": 5, "since": "1e9", "by": "ann", "why": "too much", "until": 7})
    newer.pauses("audit", {"generation": 6, "since": "1e9", "by": "bob", "why": "a look", "partitions": {
        "2": {"generation": 6, "since": "1e9", "by": "bob", "why": "a look", "lawyer": "cy"},
    }})  # fmt: skip
    rig.store.pause(PauseReason.OPERATOR, by="ann", why="wait")
    # Then both are there under their own names
    found = rig.store.state().pauses
    assert found is not None
    # (the counter of generations is the older version's own)
    assert [(p.reason, p.name, p.partition, p.why) for p in found] == [
        (PauseReason.OPERATOR, "operator", None, "wait"),
        (UNKNOWN, "quota", None, "too much"),
        (UNKNOWN, "audit", 2, "a look"),
    ]
    assert paused(found)
    # And lifting what is unknown lifts them, and nothing else
    assert rig.store.resume(UNKNOWN, generation=None, by="ann", why="go on")
    assert not rig.store.resume(UNKNOWN, generation=None, by="ann", why="go on")
    assert [p.name for p in rig.store.state().pauses or ()] == ["operator"]


def test_a_reason_that_nobody_here_knows_comes_back_after_a_flush_under_its_own_name(rig: ControlRig) -> None:
    rig.flush()
    assert rig.store.restore([AskedPause(UNKNOWN, "ann", "too much", 1e9, word="quota")], by="controller")
    [held] = rig.store.state().pauses or ()
    assert (held.reason, held.name) == (UNKNOWN, "quota")


@pytest.mark.parametrize("entry", ["not JSON", "[]", "{}", "5", '{"generation": {}}'])
def test_an_entry_that_cannot_be_read_pauses_everything_and_can_be_lifted(
    rig: ControlRig, newer: Newer, entry: str
) -> None:
    newer.pauses("poison", entry)
    [held] = rig.store.state().pauses or ()
    assert (held.reason, held.partition) == (PauseReason.POISON, None)
    # What goes on beside it still does
    generation = rig.store.pause(PauseReason.BREAKER, by="drain", why="down")
    assert rig.store.resume(PauseReason.BREAKER, generation=generation, by="prober", why="well")
    assert rig.store.resume(PauseReason.POISON, generation=None, by="ann", why="go on")
    assert rig.store.state().pauses == ()


def test_a_mode_that_nobody_here_knows_is_unknown_and_fields_beside_do_not_matter(
    rig: ControlRig, newer: Newer
) -> None:
    publish(rig)
    newer.sets(KEY_RATE, mode="cautious", horizon="30")
    rate = rig.store.state().rate
    assert rate is not None
    assert (rate.mode, rate.rate) == (Mode.UNKNOWN, 800.0)


def test_what_cannot_be_read_is_not_known_and_the_rest_is(rig: ControlRig, newer: Newer) -> None:
    publish(rig)
    rig.store.pause(PauseReason.BREAKER, by="drain", why="down")
    newer.sets(KEY_BANDS, rate_max="much")
    newer.sets(KEY_OVERRIDE, rate="fast", until="1e12")
    newer.loses(KEY_RATE, "base_rate")
    state = rig.store.state()
    assert (state.rate, state.override, state.bands, state.breaker) == (None, None, None, BreakerState.OPEN)
    assert state.pauses


def test_an_event_of_another_kind_is_told_by_its_word(rig: ControlRig, newer: Newer) -> None:
    newer.records(kind="quota_spent", by="ann", why="too much", data='{"team": "a", "left": 3}', extra="x")
    newer.records(kind="paused", by="ann", why="a newer reason", data="{}")
    newer.records(kind="rate_changed", by="c", why="w", data='{"rate": "5", "mode": "cautious", "previous": "9"}')
    newer.records(by="somebody")
    spent, paused_event, changed, bare = rig.events.last(4)
    assert (spent.kind, spent.data) == (ControlEventKind.UNKNOWN, {"team": "a", "left": "3", "kind": "quota_spent"})
    assert (event_words(spent), spent.why) == ("Quota spent (of another version)", "too much")
    assert event_words(paused_event) == "Paused"
    assert event_words(changed)
    assert (bare.kind, bare.by, event_words(bare)) == (ControlEventKind.UNKNOWN, "somebody", " (of another version)")
