"""The contract of Counters, on Redis and in memory."""

import threading
from collections.abc import Callable

import pytest
import redis

from checks.testbed.waiting import WAIT_SECONDS_MAX, while_it_lasts
from pipeline.control_store.memory import MemoryServer
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.control_store.redis_counters import RedisCounters
from pipeline.errors import StoreRefusesError, StoreUnavailableError
from pipeline.names import KEY_BUCKET, KEY_FACTS, Mode
from pipeline.ports.counters import Counters
from stack.servers import Server
from support.control import ControlRig, control_settings, eventually, memory_rig, redis_rig

Both = tuple[ControlRig, Callable[[], Counters]]


@pytest.fixture(params=["memory", "redis"])
def both(request: pytest.FixtureRequest) -> Both:
    if request.param == "memory":
        server = MemoryServer()
        counters = MemoryCounters(server)
        return memory_rig(control_settings("redis://nowhere"), server), lambda: counters
    settings = control_settings(request.getfixturevalue("control_redis").url)
    return redis_rig(settings), lambda: RedisCounters(settings)


def test_counts_of_several_processes_add_up(both: Both) -> None:
    _, make = both
    assert make().read().totals == {}

    def add(sender: str) -> None:
        mine = make()
        for number in range(1, 51):
            mine.add({"rows": 3, "batch_seconds:sum": 0.25, "nothing": 0}, sender=sender, number=number)

    threads = [threading.Thread(target=add, args=(sender,)) for sender in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make().read().totals == {"rows": 600.0, "batch_seconds:sum": 50.0}


def test_an_addition_that_comes_again_is_made_once(both: Both) -> None:
    # Given an addition whose answer was lost, so that its sender repeats it, and the next one
    _, make = both
    for number in (1, 1, 2, 1):
        make().add({"rows": 10}, sender="s", number=number)
    make().add({"rows": 5}, sender="another", number=1)
    assert make().read().totals == {"rows": 25.0}


def test_counters_begin_anew_after_a_flush(both: Both) -> None:
    rig, make = both
    counters = make()
    counters.add({"rows": 10}, sender="s", number=7)
    counters.note({"a": 1}, seconds=60)
    rig.flush()
    assert (counters.read().totals, counters.read().facts) == ({}, {})
    counters.add({"rows": 1}, sender="s", number=8)
    assert counters.read().totals == {"rows": 1.0}


def test_facts_are_replaced_and_forgotten(both: Both) -> None:
    _, make = both
    assert make().read().facts == {}
    make().note({"a": 1, "b": None}, seconds=60)

    def are_replaced(seconds: float) -> None:
        make().note({"a": 2.5}, seconds=seconds)
        assert make().read().facts == {"a": 2.5}

    while_it_lasts(are_replaced, 0.2)
    eventually(lambda: make().read().facts == {})


def test_the_bucket_is_seen_as_it_was_left(both: Both) -> None:
    rig, make = both
    assert make().read().tokens is None
    rig.store.publish_rate(
        base_rate=200.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=rig.store.state().time, actor="test"
    )
    rig.bucket.take(needed=30, wanted=30, process="p")
    found = make().read().tokens
    assert found is not None
    tokens, age_seconds, rate = found
    assert (tokens, rate) == (170.0, 200.0)
    assert 0 <= age_seconds < WAIT_SECONDS_MAX


def test_a_server_tells_its_memory(control_redis: Server) -> None:
    used, limit = RedisCounters(control_settings(control_redis.url)).memory()
    assert 100_000 < used < 1 << 30
    assert limit >= 0


def test_a_scrape_reads_everything_in_one_round_trip(own_control_redis: Server) -> None:
    # Given counters, facts and a bucket, on a server that nobody else uses or leaves
    settings = control_settings(own_control_redis.url)
    counters = RedisCounters(settings)
    counters.add({"rows": 3}, sender="s", number=1)
    counters.note({"a": 1}, seconds=60)
    with redis.Redis.from_url(own_control_redis.url, decode_responses=True) as client:

        def reads() -> int:
            """Requests that the server has read; more than one at a time are one."""
            return int(client.info("stats")["total_reads_processed"])

        counters.read()  # connects
        per_look = -(reads() - reads())
        before = reads()
        for _ in range(5):
            found = counters.read()
        assert reads() - before == 5 + per_look
    assert (found.totals, found.facts, found.tokens) == ({"rows": 3.0}, {"a": 1}, None)
    assert found.memory is not None
    assert found.memory[0] > 0


def test_a_part_that_is_refused_or_unreadable_leaves_the_others(control_redis: Server) -> None:
    # Given counters and a bucket, and a key of facts that has another type
    settings = control_settings(control_redis.url)
    rig, counters = redis_rig(settings), RedisCounters(settings)
    rig.store.publish_rate(
        base_rate=200.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=rig.store.state().time, actor="test"
    )
    rig.bucket.take(needed=1, wanted=1, process="p")
    counters.add({"rows": 3}, sender="s", number=1)
    with redis.Redis.from_url(control_redis.url) as client:
        client.rpush(settings.key_prefix + KEY_FACTS, "x")
        # When all is read, then the rest is there, and the reason
        found = counters.read()
        assert (found.totals, found.facts, found.memory is None, found.tokens is None) == (
            {"rows": 3.0},
            {},
            False,
            False,
        )
        assert list(found.problems) == ["facts"]
        assert "the control store (Redis) refuses: WRONGTYPE" in found.problems["facts"]
        # And also beside a value that is no number
        client.hset(settings.key_prefix + KEY_BUCKET, "tokens", "many")
    found = counters.read()
    assert (found.totals, found.tokens, set(found.problems)) == ({"rows": 3.0}, None, {"facts", "tokens"})


def test_a_server_that_does_not_answer_is_asked_no_part(own_control_redis: Server) -> None:
    counters = RedisCounters(control_settings(own_control_redis.url))
    counters.read()
    own_control_redis.kill()
    with pytest.raises(StoreUnavailableError, match="does not answer") as raised:
        counters.read()
    assert not isinstance(raised.value, StoreRefusesError)
