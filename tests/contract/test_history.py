"""The contract of History, on Redis and in memory."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import redis

from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.control_store.memory import MemoryServer
from pipeline.control_store.memory_history import MemoryHistory
from pipeline.control_store.redis_history import RedisHistory
from pipeline.errors import StoreUnavailableError
from pipeline.ports.history import (
    COUNTS,
    FORGET_SECONDS,
    HISTORY_ENTRIES_MAX,
    LEVEL_COUNTS,
    PROTOCOL_COUNTS,
    History,
)
from stack.servers import Server
from support.control import control_settings, redis_rig


@dataclass
class Rig:
    """One system's history as two processes see it."""

    history: History
    another: History
    flush: Callable[[], None]


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "memory":
        memory = MemoryHistory(MemoryServer())
        return Rig(memory, memory, memory.flush)
    settings = control_settings(request.getfixturevalue("control_redis").url)
    return Rig(RedisHistory(settings), RedisHistory(settings), redis_rig(settings).flush)


def test_counts_of_nothing_change_nothing_on_the_server(own_control_redis: Server) -> None:
    # Given a process that has counted, and one that is idle, on a server that nobody else uses
    settings = control_settings(own_control_redis.url)
    history = RedisHistory(settings)
    history.add({"admitted": 3}, None)
    with redis.Redis.from_url(own_control_redis.url, decode_responses=True) as client:

        def added() -> int:
            counted: dict[str, dict[str, int]] = client.info("commandstats")
            return counted.get("cmdstat_hincrby", {}).get("calls", 0)

        before = added()
        assert before > 0
        # When the idle one writes its seconds, with all names of levels and protocols
        names = (*COUNTS, *LEVEL_COUNTS, *PROTOCOL_COUNTS)
        for _ in range(3):
            RedisHistory(settings).add(dict.fromkeys(names, 0), {"lag": 0})
        # Then no total was written, and the entries have them all
        assert added() == before
    entries = history.since("", entries_max=10)
    assert [dict(zip(COUNTS, entry.counts, strict=True)) for entry in entries] == [
        dict.fromkeys(COUNTS, 0) | {"admitted": 3}
    ] * 3
    assert all(entry.levels == (0,) * len(LEVEL_COUNTS) for entry in entries)


def test_what_was_added_is_read_in_the_same_round_trip(own_control_redis: Server) -> None:
    # Given a process that writes each second, and reads what all have written since, on a server that nobody else uses
    settings = control_settings(own_control_redis.url)
    history = RedisHistory(settings)
    with redis.Redis.from_url(own_control_redis.url, decode_responses=True) as client:

        def reads() -> int:
            """Requests that the server has read; more than one at a time are one."""
            return int(client.info("stats")["total_reads_processed"])

        history.add_and_read({"admitted": 1}, {}, after="", entries_max=1)  # connects
        per_look = -(reads() - reads())
        before = reads()
        for number in range(5):
            _, [entry] = history.add_and_read({"admitted": 1}, {"number": number}, after="", entries_max=1)
            assert entry.sample == {"number": number}
        assert reads() - before == 5 + per_look
        # When the server has lost its scripts, then it writes and reads all the same, once
        client.script_flush()
        _, [entry] = history.add_and_read({"admitted": 1}, {"number": 5}, after="", entries_max=1)
    assert (entry.sample, entry.counts[0]) == ({"number": 5}, 7)


def test_the_entry_of_a_second_is_written_once(rig: Rig) -> None:
    # Given two processes that both want to write the entry of this second
    def write(history: History, name: str, age_seconds_min: float) -> tuple[bool, list[str]]:
        added, entries = history.add_and_read(
            {"admitted": 1}, {"by": name}, after="", entries_max=10, age_seconds_min=age_seconds_min
        )
        return added, [entry.sample["by"] for entry in entries]

    assert write(rig.history, "one", 30.0) == (True, ["one"])
    assert write(rig.another, "two", 30.0) == (False, ["one"])
    # Then its counts are in the totals all the same
    assert write(rig.another, "two", 0.0) == (True, ["one", "two"])
    [*_, last] = rig.history.since("", entries_max=10)
    assert last.counts[COUNTS.index("admitted")] == 3
    # And a call without a sample adds none
    assert rig.history.add_and_read({}, None, after=last.id, entries_max=10) == (False, [])


def test_a_history_that_was_never_written_is_empty(rig: Rig) -> None:
    assert list(rig.history.since("", entries_max=10)) == []


def test_an_entry_holds_the_totals_of_all_processes_and_the_sample(rig: Rig) -> None:
    # Given two processes of which one writes the entry
    rig.history.add({"admitted": 3, "limited": 1}, None)
    rig.another.add({"admitted": 4}, {"lag": [1, None], "mode": "normal"})
    rig.history.add({"admitted": 1, "failed": 2}, {"lag": None})
    # Then
    first, second = rig.history.since("", entries_max=10)
    assert dict(zip(COUNTS, first.counts, strict=True)) == dict.fromkeys(COUNTS, 0) | {"admitted": 7, "limited": 1}
    assert first.sample == {"lag": [1, None], "mode": "normal"}
    assert dict(zip(COUNTS, second.counts, strict=True))["admitted"] == 8
    assert second.counts[COUNTS.index("failed")] == 2
    assert 0 <= second.at - first.at < WAIT_SECONDS_MAX


def test_an_entry_holds_the_totals_by_level_of_processes_that_count_them(rig: Rig) -> None:
    # Given two processes that count levels, and one that does not
    rig.history.add({"admitted": 5, **dict.fromkeys(LEVEL_COUNTS, 2)}, None)
    rig.another.add({"refused": 3, **dict.fromkeys(LEVEL_COUNTS, 0), "debug refused": 3}, {})
    rig.history.add({"admitted": 1}, {})
    # Then
    first, second = rig.another.since("", entries_max=10)
    by_level = dict(zip(LEVEL_COUNTS, first.levels, strict=True))
    assert by_level == {**dict.fromkeys(LEVEL_COUNTS, 2), "debug refused": 5}
    assert dict(zip(COUNTS, first.counts, strict=True)) == dict.fromkeys(COUNTS, 0) | {"admitted": 5, "refused": 3}
    assert (second.levels, second.counts[COUNTS.index("admitted")]) == ((), 6)


def test_an_entry_holds_the_totals_by_protocol_once_one_is_used(rig: Rig) -> None:
    none = dict.fromkeys(PROTOCOL_COUNTS, 0)
    levels = dict.fromkeys(LEVEL_COUNTS, 1)
    # Given two processes, of which first none and then one is used in another protocol, with and without levels
    rig.history.add({"admitted": 5, **none, **levels}, {})
    rig.another.add({"admitted": 2, **none, "loki accepted": 2, "gelf rejected": 1}, None)
    rig.history.add({**none, "loki accepted": 3, **levels}, {})
    rig.another.add(none, {})
    # Then
    before, first, second = rig.another.since("", entries_max=10)
    assert before.protocols == ()
    totals = none | {"loki accepted": 5, "gelf rejected": 1}
    assert dict(zip(PROTOCOL_COUNTS, first.protocols, strict=True)) == totals
    assert (second.protocols, second.levels) == (first.protocols, ())
    assert first.levels == (2,) * len(LEVEL_COUNTS)
    assert second.counts[COUNTS.index("admitted")] == 7


def test_a_reader_goes_on_from_where_it_was(rig: Rig) -> None:
    for number in range(5):
        rig.history.add({}, {"number": number})
    entries = rig.history.since("", entries_max=3)
    assert [entry.sample["number"] for entry in entries] == [2, 3, 4]
    assert list(rig.another.since(entries[-1].id, entries_max=10)) == []
    assert [entry.sample["number"] for entry in rig.another.since(entries[0].id, entries_max=10)] == [3, 4]


def test_it_is_bounded(rig: Rig) -> None:
    for number in range(HISTORY_ENTRIES_MAX + 20):
        rig.history.add({"admitted": 1}, {"number": number})
    entries = rig.history.since("", entries_max=10 * HISTORY_ENTRIES_MAX)
    assert len(entries) == HISTORY_ENTRIES_MAX
    assert entries[-1].sample == {"number": HISTORY_ENTRIES_MAX + 19}
    assert entries[-1].counts[0] == HISTORY_ENTRIES_MAX + 20


def test_a_flush_loses_history_and_nothing_else(rig: Rig) -> None:
    rig.history.add({"admitted": 5}, {})
    rig.flush()
    assert list(rig.history.since("", entries_max=10)) == []
    rig.history.add({"admitted": 2}, {})
    (entry,) = rig.history.since("", entries_max=10)
    assert entry.counts[0] == 2


def test_what_redis_keeps_expires_and_takes_a_few_hundred_kilobytes(control_redis: Server) -> None:
    settings = control_settings(control_redis.url)
    history = RedisHistory(settings)
    sample = {"lag": [12_345] * 16, "rate": 1000.0, "tokens": 1000, "drained": 123_456_789, "breaker": "half-open"}
    for _ in range(HISTORY_ENTRIES_MAX):
        history.add(dict.fromkeys((*COUNTS, *PROTOCOL_COUNTS), 999), sample)
    with redis.Redis.from_url(control_redis.url) as client:
        keys = list(client.scan_iter(match=settings.key_prefix + "*", count=1000))
        assert len(keys) == 2
        for key in keys:
            assert FORGET_SECONDS - 60 < client.ttl(key) <= FORGET_SECONDS
        assert sum(client.memory_usage(key) or 0 for key in keys) < 500_000


def test_at_its_memory_limit_redis_takes_no_history(own_control_redis: Server) -> None:
    history = RedisHistory(control_settings(own_control_redis.url))
    history.add({"admitted": 1}, {})  # from now on the server has the script
    with redis.Redis.from_url(own_control_redis.url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailableError):
            history.add({"admitted": 1}, {})
        # Also if the read in the same round trip is answered
        with pytest.raises(StoreUnavailableError):
            history.add_and_read({"admitted": 1}, {}, after="", entries_max=1)
        client.config_set("maxmemory", "64mb")
    history.add({"admitted": 1}, {})


def test_a_server_that_is_away_is_said_so(own_control_redis: Server) -> None:
    history = RedisHistory(control_settings(own_control_redis.url))
    own_control_redis.kill()
    with pytest.raises(StoreUnavailableError):
        history.add({}, None)
    with pytest.raises(StoreUnavailableError):
        history.since("", entries_max=1)
    with pytest.raises(StoreUnavailableError):
        history.add_and_read({}, None, after="", entries_max=1)
    memory = MemoryServer()
    memory.is_unavailable = True
    with pytest.raises(StoreUnavailableError):
        MemoryHistory(memory).add({}, None)
