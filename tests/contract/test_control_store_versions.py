"""An older and a newer version of Sluice on one control server: what either writes, the other reads or lives with."""

import json
from collections.abc import Iterator, Mapping

import msgspec
import pytest
import redis

from ingest.dashboard.event_rows import event_rows
from pipeline.control_store.redis_counters import RedisCounters
from pipeline.control_store.redis_history import RedisHistory
from pipeline.errors import FencedError
from pipeline.event_text import event_text
from pipeline.names import (
    KEY_BANDS,
    KEY_COUNTERS,
    KEY_EVENTS,
    KEY_FACTS,
    KEY_HISTORY,
    KEY_LOWEST_OFFSETS,
    KEY_OVERRIDE,
    KEY_PAUSE,
    KEY_RATE,
    KEY_TROUBLES,
    AlarmCode,
    BreakerState,
    ControlEventKind,
    Mode,
    PauseReason,
)
from pipeline.ports.control import OperatorPause, Trouble, paused
from pipeline.ports.rate import Explanation, PolicyRecord
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
        self.adds(KEY_EVENTS, fields)

    def adds(self, key: str, fields: Mapping[str, str]) -> None:
        self._client.xadd(self._prefix + key, dict(fields))  # type: ignore[arg-type]

    def puts(self, key: str, text: str) -> None:
        self._client.set(self._prefix + key, text)


class Older:
    """A process of an earlier version, as far as it knows the fence: for it, a Kafka topic's incarnation is its id."""

    _FENCE = """
        redis.call('HSET', KEYS[1], 'incarnation', ARGV[1])
        redis.call('HDEL', KEYS[1], 'claimed_at')
        return 1"""
    _RAISE = """
        local server_time = redis.call('TIME')
        local now = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6
        local held = redis.call('HMGET', KEYS[1], 'incarnation', 'claimed_at', ARGV[2])
        local claimed_at = tonumber(held[2] or '')
        if held[1] and held[1] ~= ARGV[1] and not (claimed_at and math.abs(now - claimed_at) > tonumber(ARGV[4])) then
          return 0
        end
        if not held[1] or claimed_at then
          redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'claimed_at', string.format('%.17g', now))
        end
        local floor = tonumber(held[3] or '')
        if not floor or floor < tonumber(ARGV[3]) then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
        return 1"""

    def __init__(self, rig: ControlRig, client: redis.Redis) -> None:
        self._client = client
        self._key = f"{rig.settings.key_prefix}{KEY_LOWEST_OFFSETS}:log"

    def fence(self, incarnation: str) -> None:
        self._client.eval(self._FENCE, 1, self._key, incarnation)

    def raises_floor(self, incarnation: str, partition: int, offset: int) -> bool:
        """Whether its drain may store."""
        answer = self._client.eval(self._RAISE, 1, self._key, incarnation, str(partition), str(offset), "60")
        return bool(answer == 1)

    def claimed_long_ago(self) -> None:
        """Its drains began to store after a flush, and none did for longer than a drain may run."""
        self._client.hset(self._key, "claimed_at", "1")


@pytest.fixture
def rig(control_redis: Server) -> ControlRig:
    rig = redis_rig(control_settings(control_redis.url))
    rig.store.restore([], actor="controller")
    return rig


@pytest.fixture
def newer(rig: ControlRig) -> Iterator[Newer]:
    with redis.Redis.from_url(rig.settings.redis_url, decode_responses=True) as client:
        yield Newer(rig, client)


@pytest.fixture
def older(rig: ControlRig) -> Iterator[Older]:
    with redis.Redis.from_url(rig.settings.redis_url, decode_responses=True) as client:
        yield Older(rig, client)


def publish(rig: ControlRig, policy: PolicyRecord | None = None) -> None:
    rig.store.publish_rate(
        base_rate=800.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="controller", policy=policy
    )


def test_a_reason_that_nobody_here_knows_pauses_is_named_and_can_be_lifted(rig: ControlRig, newer: Newer) -> None:
    # Given reasons of a newer version, of the system and of a partition, with fields that this one does not know
    newer.pauses("quota", {"generation": 5, "since": "1e9", "by": "ann", "why": "too much", "until": 7})
    newer.pauses("audit", {"generation": 6, "since": "1e9", "by": "bob", "why": "a look", "partitions": {
        "2": {"generation": 6, "since": "1e9", "by": "bob", "why": "a look", "lawyer": "cy"},
    }})  # fmt: skip
    rig.store.pause(PauseReason.OPERATOR, actor="ann", why="wait")
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
    assert rig.store.resume(UNKNOWN, generation=None, actor="ann", why="go on")
    assert not rig.store.resume(UNKNOWN, generation=None, actor="ann", why="go on")
    assert [p.name for p in rig.store.state().pauses or ()] == ["operator"]


def test_a_reason_that_nobody_here_knows_comes_back_after_a_flush_under_its_own_name(rig: ControlRig) -> None:
    rig.flush()
    assert rig.store.restore([OperatorPause(UNKNOWN, "ann", "too much", 1e9, word="quota")], actor="controller")
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
    generation = rig.store.pause(PauseReason.BREAKER, actor="drain", why="down")
    assert rig.store.resume(PauseReason.BREAKER, generation=generation, actor="prober", why="well")
    assert rig.store.resume(PauseReason.POISON, generation=None, actor="ann", why="go on")
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
    rig.store.pause(PauseReason.BREAKER, actor="drain", why="down")
    newer.sets(KEY_BANDS, rate_max="much")
    newer.sets(KEY_OVERRIDE, rate="fast", until="1e12")
    newer.loses(KEY_RATE, "base_rate")
    state = rig.store.state()
    assert (state.rate, state.override, state.bands, state.breaker) == (None, None, None, BreakerState.OPEN)
    assert state.pauses


def test_a_policy_of_another_version_does_not_hide_the_rate(rig: ControlRig, newer: Newer) -> None:
    # Given a record that this version can't read
    record = PolicyRecord(Explanation("bands", "a sentence", "lag is low", "lag 0", 1000.0, "the sink"))
    publish(rig, policy=record)
    newer.sets(KEY_RATE, policy='{"explanation": "in one word"}')
    rate = rig.store.state().rate
    assert rate is not None
    assert (rate.rate, rate.policy) == (800.0, None)
    # Given a record with a field that this version does not know
    publish(rig, policy=record)
    with_more = msgspec.json.encode(record).decode().replace('{"explanation":{', '{"mood":1,"explanation":{"song":2,')
    newer.sets(KEY_RATE, policy=with_more)
    rate = rig.store.state().rate
    assert rate is not None
    assert rate.policy == record
    # Given an older version, which publishes none and leaves the earlier one in place
    newer.sets(KEY_RATE, published_at="1.5")
    rate = rig.store.state().rate
    assert rate is not None
    assert (rate.rate, rate.policy) == (800.0, None)


def test_an_event_of_another_kind_is_told_by_its_word(rig: ControlRig, newer: Newer) -> None:
    newer.records(kind="quota_spent", by="ann", why="too much", data='{"team": "a", "left": 3}', extra="x")
    newer.records(kind="paused", by="ann", why="a newer reason", data="{}")
    newer.records(kind="rate_changed", by="c", why="w", data='{"rate": "5", "mode": "cautious", "previous": "9"}')
    newer.records(by="somebody")
    spent, paused_event, changed, bare = rig.events.last(4)
    assert (spent.kind, spent.data) == (ControlEventKind.UNKNOWN, {"team": "a", "left": "3", "kind": "quota_spent"})
    assert (event_text(spent), spent.why) == ("Quota spent (of another version)", "too much")
    assert event_text(paused_event) == "Paused"
    assert event_text(changed)
    assert (bare.kind, bare.actor, event_text(bare)) == (ControlEventKind.UNKNOWN, "somebody", " (of another version)")


def test_drains_of_two_versions_store_side_by_side_from_one_topic(rig: ControlRig, older: Older) -> None:
    # Given workers of both versions, for which the same topic has another incarnation
    rig.fence.fence("log", "topic:epochs")
    # Then neither fences off the other
    for offset in (10, 20, 30):
        assert older.raises_floor("topic", 0, offset)
        rig.fence.raise_lowest_offset("log", "topic:epochs", 1, offset)
    # Nor when the older ones were the only ones for a while
    older.claimed_long_ago()
    assert older.raises_floor("topic", 0, 40)
    rig.fence.raise_lowest_offset("log", "topic:epochs", 1, 40)
    assert rig.fence.mirror("log").lowest_offsets == {0: 40, 1: 40}
    # But the fence between the newer ones stays, and another topic's is one for all
    rig.fence.fence("log", "topic:later epochs")
    assert older.raises_floor("topic", 0, 50)
    with pytest.raises(FencedError):
        rig.fence.raise_lowest_offset("log", "topic:epochs", 1, 50)
    rig.fence.fence("log", "other:epochs")
    assert not older.raises_floor("topic", 0, 60)


def test_the_fence_of_either_version_holds_for_the_other(rig: ControlRig, older: Older) -> None:
    # Given a Redis log that was restarted, and an ingest of the older version that fences
    rig.fence.fence("log", "a")
    older.fence("b")
    with pytest.raises(FencedError):
        rig.fence.raise_lowest_offset("log", "a", 0, 10)
    # And one of the newer version, with drains of the older one that had to claim the place
    older.claimed_long_ago()
    rig.fence.fence("log", "c")
    assert not older.raises_floor("b", 0, 10)
    assert older.raises_floor("c", 0, 10)


def test_the_rate_of_the_last_event_counts_until_an_older_version_publishes(rig: ControlRig, newer: Newer) -> None:
    # Given a controller of an older version that published a rate, as any writer of the rate does, and one that is back
    record = PolicyRecord(Explanation("toy", "", "", "", 1e4, "", event_ratio=0.1))
    publish(rig, record)
    newer.sets(KEY_RATE, version="99999999999999", rate="300.0", base_rate="300.0")
    rig.store.publish_rate(
        base_rate=790.0, floor_rate=100.0, mode=Mode.DEGRADED, lag=0, lag_known_at=None, actor="c", policy=record
    )
    # Then its change is from that rate
    data = rig.events.last(1)[0].data
    assert (data["previous"], data["rate"]) == ("300.0", "790.0")


def test_a_process_whose_report_cannot_be_read_is_named_and_the_others_are_heard(rig: ControlRig, newer: Newer) -> None:
    # Given reports of problems that this version can't read, and one that it can
    unreadable = ["not JSON", "5", '{"code": 1}', "null", '[["only a code"]]', "[[]]", '[{"code": 1}]', "[null]"]
    for number, text in enumerate(unreadable):
        newer.sets(KEY_TROUBLES, **{f"newer-{number}": text})
    newer.sets(KEY_TROUBLES, more='[["clocks_differ", "it is late", "by 3 s"]]')
    own = Trouble(AlarmCode.CLOCKS_DIFFER, "its clock differs")
    rig.troubles.report("own", [own])
    # Then each process is there, with what can be read
    found = rig.troubles.reported()
    assert found.pop("own") == [own]
    assert found.pop("more") == [Trouble(AlarmCode.CLOCKS_DIFFER, "it is late")]
    for number, text in enumerate(unreadable):
        [trouble] = found.pop(f"newer-{number}")
        assert trouble.code == AlarmCode.LOOP_FAILS
        assert trouble.what.startswith("it reports a problem that this version of Sluice can't read: ")
        assert text.strip("[]")[:5] in trouble.what
    assert found == {}


@pytest.mark.parametrize(("count", "first_at"), [("many", "soon"), ("", ""), ("-1", "nan"), ("1.5", "1e300")])
def test_an_event_whose_figures_cannot_be_read_is_told_without_them(
    rig: ControlRig, newer: Newer, count: str, first_at: str
) -> None:
    newer.records(kind="override_set", by="a", why="w", data='{"rate": "5", "until": "1e300"}')
    newer.records(kind="drainer_terminated", by="a", why="w", data="[1]", count=count, first_at=first_at)
    override, event = rig.events.last(2)
    assert (event.count, event.first_at) == (1, None)
    assert (event_text(override), event_text(event)) == ("Override set", "Drainer terminated")


def test_an_event_with_half_a_character_can_be_shown(rig: ControlRig, newer: Newer) -> None:
    # Given JSON with half of a surrogate pair, which can't be encoded, and a count that is no number for Python
    newer.records(kind="key_made", by="a", why="w", data=r'{"id": "1", "name": "x\ud800"}', count="9" * 5000)
    # Then the page and the terminal can still show it
    [row] = event_rows(rig.events.last(1))
    assert (json.loads(msgspec.json.encode(row))["what"], row["count"]) == ("API key 1 made for x?", 1)


@pytest.mark.parametrize(
    "fields", [{}, {"data": "not JSON"}, {"data": "5"}, {"data": '{"reason": "breaker"}', "count": "many"}]
)
def test_an_event_that_cannot_be_read_hinders_no_later_one(
    rig: ControlRig, newer: Newer, fields: dict[str, str]
) -> None:
    # Given an event of a kind that repeats, as this version would not write it
    newer.records(kind="paused", by="newer", **fields)
    # When the same happens here, then it is recorded
    rig.store.pause(PauseReason.BREAKER, actor="drain", why="down")
    assert paused(rig.store.state().pauses or ())
    assert [event.actor for event in rig.events.last(10) if event.kind is ControlEventKind.PAUSED][-1] == "drain"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"c": "1", "s": "not JSON"},
        {"c": "1", "s": "[]"},
        {"c": "one", "s": "{}"},
        {"c": "1", "s": "{}", "l": "x"},
        {"c": "1", "s": "{}", "p": "x"},
    ],
)
def test_seconds_of_the_history_that_cannot_be_read_are_left_out(
    rig: ControlRig, newer: Newer, fields: dict[str, str]
) -> None:
    history = RedisHistory(rig.settings)
    history.add({"accepted": 1}, {"rate": 5})
    newer.adds(KEY_HISTORY, {**fields, "x": "y"})
    history.add({"accepted": 1}, {"rate": 6})
    assert [entry.sample for entry in history.since("", entries_max=10)] == [{"rate": 5}, {"rate": 6}]


def test_counts_and_facts_that_cannot_be_read_are_unknown(rig: ControlRig, newer: Newer) -> None:
    counters = RedisCounters(rig.settings)
    counters.add({"rows": 2}, sender="a", number=1)
    newer.sets(KEY_COUNTERS, mood="good")
    assert counters.read().totals == {"rows": 2.0}
    for text in ("not JSON", "5", "[]"):
        newer.puts(KEY_FACTS, text)
        assert counters.read().facts == {}


@pytest.mark.parametrize("field", ["consumption", "alarms", "floor_rate"])
def test_a_part_of_the_rate_that_cannot_be_read_is_unknown(rig: ControlRig, newer: Newer, field: str) -> None:
    publish(rig)
    newer.sets(KEY_RATE, **{field: "[5]"})
    state = rig.store.state()
    if field == "floor_rate":
        assert (state.rate, state.floor_rate) == (None, 0.0)
    else:
        assert state.rate is not None
        assert (state.rate.rate, state.rate.consumption, state.rate.alarms) == (800.0, None, ())
