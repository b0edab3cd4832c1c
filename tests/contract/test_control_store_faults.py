"""What the Redis adapters do when their server fails, is full, forgets, or is inherited over a fork."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import pytest
import redis

from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX, eventually, least_seconds
from pipeline.errors import StoreUnavailableError
from pipeline.names import ControlEventKind, Mode, PauseReason
from pipeline.ports.control import Trouble
from stack.servers import Server
from support.control import ControlRig, control_settings, redis_rig


def calls(rig: ControlRig) -> dict[str, Callable[[], object]]:
    """One call of each method."""
    return {
        "state": rig.store.state,
        "publish_rate": lambda: rig.store.publish_rate(
            base_rate=9.0, floor_rate=1.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor="controller"
        ),
        "pause": lambda: rig.store.pause(PauseReason.BREAKER, actor="drain", why="down"),
        "resume": lambda: rig.store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="well"),
        "restore": lambda: rig.store.restore([], actor="controller"),
        "last": lambda: rig.events.last(10),
        "record": lambda: rig.events.record(ControlEventKind.PAUSED, actor="a", why="b", data={}),
        "wait": lambda: rig.events.wait("", wait_seconds=0.05),
        "fence": lambda: rig.fence.fence("log", "a"),
        "seed": lambda: rig.fence.seed("log", "life", {0: 1}),
        "raise_lowest_offset": lambda: rig.fence.raise_lowest_offset("log", "a", 0, 2),
        "take_leases": lambda: rig.leases.take("duty", seconds=1.0),
        "give_back": lambda: rig.leases.give_back("duty", "token"),
        "note": lambda: rig.progress.note("log", {0: 1}, forget_seconds=1.0),
        "report": lambda: rig.troubles.report("worker", [Trouble("loop_fails", "it fails")]),
        "reported": rig.troubles.reported,
        "bucket": lambda: rig.bucket.take(needed=1, wanted=1, process="a"),
    }


def all_unavailable(rig: ControlRig) -> None:
    """Each call says so, and soon: a busy machine makes some of its tries longer, and none shorter."""
    took: dict[str, list[float]] = {}

    def seconds_of(name: str, call: Callable[[], object]) -> float:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            call()
        took.setdefault(name, []).append(time.monotonic() - started)
        return took[name][-1]

    for name, call in calls(rig).items():
        below = 1.5 if name == "wait" else 0.5  # the answer to a wait may be a second late; others end within 0.2 s
        assert least_seconds(partial(seconds_of, name, call), below=below) < below, took
    assert max(map(max, took.values())) < BUSY_SECONDS, took


def all_work(rig: ControlRig) -> None:
    """Each call works; one that a busy machine kept waiting for too long is made again."""
    for name, call in calls(rig).items():
        eventually(partial(_answers, call), f"{name} works")


def _answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreUnavailableError as error:
        if "imeout" not in str(error):
            raise
        return False
    return True


@pytest.mark.usefixtures("shipped_limits")
def test_a_dead_a_frozen_and_a_returned_server(own_control_redis: Server) -> None:
    rig = redis_rig(control_settings(own_control_redis.url))
    all_work(rig)
    # Frozen, with connections open and, after the first time-outs, with none
    own_control_redis.freeze()
    all_unavailable(rig)
    all_unavailable(rig)
    own_control_redis.thaw()
    all_work(rig)
    # Dead
    own_control_redis.kill()
    all_unavailable(rig)
    # Back, without the scripts and without the data
    own_control_redis.start()
    all_work(rig)


@pytest.mark.usefixtures("shipped_limits")
def test_a_wait_is_answered_for_late_by_a_frozen_server(own_control_redis: Server) -> None:
    rig = redis_rig(control_settings(own_control_redis.url))
    positions: list[str] = []
    eventually(lambda: _answers(lambda: positions.append(rig.events.wait("", wait_seconds=0.5))), "it answers")
    position = positions[-1]
    own_control_redis.freeze()
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        rig.events.wait(position, wait_seconds=0.5)
    assert 1.0 < time.monotonic() - started < 2.0 + BUSY_SECONDS


def test_a_waiter_learns_at_once_that_the_server_died(own_control_redis: Server) -> None:
    rig = redis_rig(control_settings(own_control_redis.url))
    position = rig.events.wait("", wait_seconds=0.05)
    failed_at: list[float] = []

    def wait() -> None:
        try:
            rig.events.wait(position, wait_seconds=30.0)
        except StoreUnavailableError:
            failed_at.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    with redis.Redis.from_url(own_control_redis.url) as client:
        eventually(lambda: client.info("clients")["blocked_clients"] > 0, "it waits")
    killed_at = time.monotonic()
    own_control_redis.kill()
    thread.join(WAIT_SECONDS_MAX)
    assert failed_at
    assert failed_at[0] - killed_at < BUSY_SECONDS  # it would wait for 30 s


def test_everything_works_on_a_full_server(own_control_redis: Server) -> None:
    # Given a server at its memory limit, as Celery's queues can bring it there
    rig = redis_rig(control_settings(own_control_redis.url))
    with redis.Redis.from_url(own_control_redis.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 500_000)  # less than an empty server takes
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("x", "y")
        # Then nothing of the control plane fails, also when the server has to learn the scripts first
        all_work(rig)
        client.script_flush()
        all_work(rig)


def test_a_server_that_refuses_for_now_is_unavailable(own_control_redis: Server) -> None:
    rig = redis_rig(control_settings(own_control_redis.url))
    all_work(rig)
    with redis.Redis.from_url(own_control_redis.url) as client:
        # A replica whose master is away reads stale data, and writes nothing
        client.replicaof("127.0.0.1", "1")
        for name, call in calls(rig).items():
            if name in ("state", "last", "wait", "reported"):
                continue
            with pytest.raises(StoreUnavailableError):
                call()
        client.replicaof("no", "one")
    all_work(rig)


def test_whatever_the_server_refuses_is_a_store_that_is_unavailable(control_redis: Server) -> None:
    # Given a key of another type
    rig = redis_rig(control_settings(control_redis.url))
    with redis.Redis.from_url(control_redis.url) as client:
        client.set(rig.settings.key_prefix + "bucket", "not a hash")
    with pytest.raises(StoreUnavailableError, match="refuses: WRONGTYPE"):
        rig.bucket.take(needed=1, wanted=1, process="a")
    # And an account that may do nothing, one that is wrong, and one that may not run scripts
    name = f"u{rig.settings.key_prefix[:-1]}"
    with redis.Redis.from_url(control_redis.url) as client:
        client.acl_setuser(name, enabled=True, nopass=True, keys=["*"], commands=["-@all"])
        try:
            address = control_redis.url.removeprefix("redis://")
            for user in (f"{name}:x", f"{name}-nobody:x"):
                all_unavailable(redis_rig(control_settings(f"redis://{user}@{address}")))
            client.acl_setuser(name, enabled=True, commands=["+@all", "-@scripting"])
            refused = redis_rig(control_settings(f"redis://{name}:x@{address}"))
            with pytest.raises(StoreUnavailableError, match="no permissions"):
                refused.store.state()
            # Then it works as soon as somebody has corrected it
            client.acl_setuser(name, enabled=True, commands=["+@all"])
            all_work(refused)
        finally:
            client.acl_deluser(name)


def test_two_stores_that_race_leave_one_truth(control_redis: Server) -> None:
    # Given two processes' stores
    settings = control_settings(control_redis.url)
    stores = [redis_rig(settings).store for _ in range(2)]
    stores[0].restore([], actor="controller")
    generations: list[int] = []
    lifted: list[bool] = []
    versions: list[int] = []
    barrier = threading.Barrier(2)

    def race(number: int) -> None:
        store = stores[number]
        for _ in range(50):
            barrier.wait()
            generations.append(store.pause(PauseReason.BREAKER, actor=str(number), why="down"))
            versions.append(
                store.publish_rate(
                    base_rate=500.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=None, actor=str(number)
                ).version
            )
            barrier.wait()
            lifted.append(store.resume(PauseReason.BREAKER, generation=generations[-1], actor=str(number), why="well"))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then each occurrence had one generation, was lifted once, and each publication had a version of its own
    assert len(set(generations)) == 50
    assert lifted.count(True) == 50
    assert len(set(versions)) == 100
    state = stores[0].state()
    assert state.pauses == ()
    assert state.rate is not None
    assert state.rate.rate == 500.0


def _state_in_child(rig_store: Any, results: "Queue[int]") -> None:
    for _ in range(50):
        results.put(rig_store.state().generation)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a fork with threads is what is tested
def test_a_forked_child_does_not_use_its_parents_connection(control_redis: Server) -> None:
    rig = redis_rig(control_settings(control_redis.url))
    rig.store.pause(PauseReason.OPERATOR, actor="ann", why="wait")
    context = multiprocessing.get_context("fork")
    results: Queue[int] = context.Queue()
    child = context.Process(target=_state_in_child, args=(rig.store, results))
    child.start()
    # Answers would mix if both read from one socket.
    for number in range(50):
        assert rig.bucket.take(needed=1, wanted=1, process=str(number)).burst == 100
        assert rig.store.state().generation == 1
    assert [results.get(timeout=WAIT_SECONDS_MAX) for _ in range(50)] == [1] * 50
    child.join(WAIT_SECONDS_MAX)
    assert child.exitcode == 0
