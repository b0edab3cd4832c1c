"""The contracts of Leases, Progress and OffsetFence, on Redis and in memory."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.control_store.memory import MemoryServer
from pipeline.errors import FencedError, StoreUnavailableError
from pipeline.names import AlarmCode
from pipeline.ports.control import Mirror, Trouble
from stack.servers import Server
from support.control import ControlRig, control_settings, eventually, memory_rig, redis_rig


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere"))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url))


# --- Leases ---------------------------------------------------------------------------------------


def test_a_lease_is_one_processs_until_it_is_given_back(rig: ControlRig) -> None:
    token = rig.leases.take("duty", seconds=60.0)
    assert token
    assert rig.leases.take("duty", seconds=60.0) is None
    assert rig.leases.take("another duty", seconds=60.0) is not None
    rig.leases.give_back("duty", token)
    assert rig.leases.take("duty", seconds=60.0) not in (None, token)


def test_leases_are_taken_in_order_up_to_one_that_another_holds(rig: ControlRig) -> None:
    first = rig.leases.take_in_order([("period", 60.0), ("duty", 60.0), ("rare", 0.05)])
    assert len(first) == 3
    # The first of them is held: then the others are not taken
    rig.leases.give_back("duty", first[1])
    assert rig.leases.take_in_order([("period", 60.0), ("duty", 60.0)]) == []
    assert rig.leases.take("duty", seconds=60.0) is not None
    # The second one is
    rig.leases.give_back("period", first[0])
    assert len(rig.leases.take_in_order([("period", 60.0), ("duty", 60.0), ("rare", 60.0)])) == 1
    # And the last one has expired, each after its own time
    eventually(lambda: rig.leases.take_in_order([("rare", 60.0)]) != [])


def test_a_lease_that_is_somebody_elses_now_is_not_given_back(rig: ControlRig) -> None:
    rig.leases.take("duty", seconds=60.0)
    rig.leases.give_back("duty", "a token of long ago")
    assert rig.leases.take("duty", seconds=60.0) is None


def test_a_lease_expires(rig: ControlRig) -> None:
    assert rig.leases.take("duty", seconds=0.05) is not None
    eventually(lambda: rig.leases.take("duty", seconds=60.0) is not None)


def test_of_many_who_ask_at_once_one_gets_it(rig: ControlRig) -> None:
    tokens: list[str | None] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        tokens.append(rig.leases.take("duty", seconds=60.0))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([token for token in tokens if token]) == 1


# --- Progress -------------------------------------------------------------------------------------


def test_a_partition_that_stands_still_is_noticed_and_one_that_moves_is_not(rig: ControlRig) -> None:
    offset = 0

    def stood() -> dict[int, float]:
        nonlocal offset
        offset += 1
        return rig.progress.note("log", {0: 10, 1: offset}, forget_seconds=60.0)

    assert stood() == {0: 0.0, 1: 0.0}
    eventually(lambda: stood()[0] >= 0.1)
    assert stood()[1] == 0.0


def test_what_is_not_given_is_forgotten(rig: ControlRig) -> None:
    rig.progress.note("log", {0: 10}, forget_seconds=60.0)
    eventually(lambda: rig.progress.note("log", {0: 10}, forget_seconds=60.0)[0] > 0.05)
    assert rig.progress.note("log", {}, forget_seconds=60.0) == {}
    assert rig.progress.note("log", {0: 10}, forget_seconds=60.0) == {0: 0.0}
    assert rig.progress.note("another log", {0: 10}, forget_seconds=60.0) == {0: 0.0}


def test_progress_of_long_ago_counts_for_nothing(rig: ControlRig) -> None:
    rig.progress.note("log", {0: 10}, forget_seconds=0.05)
    threading.Event().wait(0.1)  # nothing can be asked meanwhile: asking is what keeps it alive
    assert rig.progress.note("log", {0: 10}, forget_seconds=60.0) == {0: 0.0}


# --- OffsetFence ---------------------------------------------------------------------------------------


def test_a_mirror_that_was_never_seeded_is_not_complete(rig: ControlRig) -> None:
    assert not rig.fence.fence("log", "a").is_complete
    rig.fence.raise_lowest_offset("log", "a", 0, 10)
    mirror = rig.fence.mirror("log")
    assert (mirror.lowest_offsets, mirror.is_complete) == ({0: 10}, False)


def test_lowest_offsets_rise_and_never_fall(rig: ControlRig) -> None:
    life = rig.fence.fence("log", "a").life
    rig.fence.seed("log", life, {0: 100, 1: 50})
    rig.fence.raise_lowest_offset("log", "a", 0, 120)
    rig.fence.raise_lowest_offset("log", "a", 1, 40)
    rig.fence.raise_lowest_offset("log", "a", 2, 7)
    rig.fence.seed("log", life, {0: 110, 1: 45, 3: 0})
    assert rig.fence.fence("log", "b") == Mirror(life, {0: 120, 1: 50, 2: 7, 3: 0}, is_complete=True)
    assert rig.fence.mirror("another log").lowest_offsets == {}


def test_a_lowest_offset_is_lowered_to_what_is_stored_and_never_raised_by_that(rig: ControlRig) -> None:
    rig.fence.fence("log", "a")
    rig.fence.raise_lowest_offset("log", "a", 0, 80)
    rig.fence.raise_lowest_offset("log", "a", 1, 80)
    rig.fence.lower_lowest_offset("log", 0, 50)
    rig.fence.lower_lowest_offset("log", 1, 90)
    assert rig.fence.mirror("log").lowest_offsets == {0: 50, 1: 80}
    rig.fence.raise_lowest_offset("log", "a", 0, 51)
    assert rig.fence.mirror("log").lowest_offsets == {0: 51, 1: 80}


def test_a_mirror_that_was_seeded_with_nothing_is_complete(rig: ControlRig) -> None:
    rig.fence.seed("log", rig.fence.mirror("log").life, {})
    mirror = rig.fence.fence("log", "a")
    assert (mirror.lowest_offsets, mirror.is_complete) == ({}, True)


def test_an_older_incarnation_is_fenced_off(rig: ControlRig) -> None:
    # Given a drain of incarnation a
    rig.fence.fence("log", "a")
    rig.fence.raise_lowest_offset("log", "a", 0, 10)
    # When the log was restarted
    rig.fence.fence("log", "b")
    # Then it may not commit any more, and those of b may
    with pytest.raises(FencedError):
        rig.fence.raise_lowest_offset("log", "a", 0, 20)
    rig.fence.raise_lowest_offset("log", "b", 0, 15)
    assert rig.fence.mirror("log").lowest_offsets == {0: 15}


def test_after_a_flush_nobody_raises_before_somebody_has_fenced(rig: ControlRig) -> None:
    # Given a mirror that was flushed, and PostgreSQL's answer of before
    before = rig.fence.fence("log", "b")
    rig.fence.seed("log", before.life, {0: 5})
    rig.flush()
    # Then no drain may raise a lowest offset, of whichever incarnation: the store does not know which one is the log's
    for incarnation in ("a", "b"):
        with pytest.raises(FencedError):
            rig.fence.raise_lowest_offset("log", incarnation, 0, 10)
    # And after the next fence one may, while the older answer of PostgreSQL makes nothing complete
    rig.fence.fence("log", "b")
    rig.fence.raise_lowest_offset("log", "b", 0, 10)
    rig.fence.seed("log", before.life, {0: 5})
    mirror = rig.fence.mirror("log")
    assert (mirror.lowest_offsets, mirror.is_complete) == ({0: 10}, False)


@pytest.fixture(params=["memory", "redis"])
def older(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[ControlRig, Callable[[], object], Callable[[], object]]:
    """A store's adapters, what remembers it, and what lets it come back as it was then."""
    if request.param == "memory":
        server = MemoryServer()
        kept: list[Any] = []
        rig = memory_rig(control_settings("redis://nowhere"), server)
        return rig, lambda: kept.append(server.remember()), lambda: server.restart(kept[0])
    redis_server: Server = request.getfixturevalue("own_control_redis")
    data, copy = tmp_path / "redis-control", tmp_path / "copy"

    def come_back() -> None:
        redis_server.kill()
        shutil.rmtree(data)
        shutil.copytree(copy, data)
        redis_server.start()

    return (
        redis_rig(control_settings(redis_server.url)),
        lambda: eventually(lambda: b"cccc" in _content(data) and bool(shutil.copytree(data, copy))),
        come_back,
    )


def _content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*.aof"))


def test_a_mirror_from_an_older_file_is_no_witness(
    older: tuple[ControlRig, Callable[[], object], Callable[[], object]],
) -> None:
    # Given a complete mirror, in a file that knows less than was raised and fenced since
    rig, remember, come_back = older
    before = rig.fence.fence("log", "a")
    rig.fence.seed("log", before.life, {0: 100})
    rig.fence.fence("the last to be written", "cccc")
    remember()
    rig.fence.fence("log", "b")
    rig.fence.raise_lowest_offset("log", "b", 0, 150)
    # When the store comes back from it
    come_back()
    # Then it does not say that it is complete, nor does it take the older incarnation for the current one
    eventually(lambda: _answers(rig))
    mirror = rig.fence.mirror("log")
    assert (mirror.lowest_offsets, mirror.is_complete) == ({0: 100}, False)
    assert mirror.life != before.life
    for incarnation in ("a", "b"):
        with pytest.raises(FencedError):
            rig.fence.raise_lowest_offset("log", incarnation, 0, 160)
    # And PostgreSQL's answer counts where it was given in this life only
    rig.fence.seed("log", before.life, {0: 150})
    assert not rig.fence.fence("log", "b").is_complete
    rig.fence.seed("log", mirror.life, {0: 150})
    assert rig.fence.fence("log", "b") == Mirror(mirror.life, {0: 150}, is_complete=True)
    rig.fence.raise_lowest_offset("log", "b", 0, 160)


def _answers(rig: ControlRig) -> bool:
    try:
        rig.store.state()
    except StoreUnavailableError:
        return False
    return True


# --- Troubles -------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_process_is_known_until_it_takes_it_back_or_says_no_more(rig: ControlRig) -> None:
    assert rig.troubles.reported() == {}
    one, two = Trouble(AlarmCode.LOOP_FAILS, "one"), Trouble("of a newer version", "two" * 1000)
    three = Trouble(AlarmCode.CLOCKS_DIFFER, "three")
    rig.troubles.report("a", [one, two])
    rig.troubles.report("b", [three])
    assert rig.troubles.reported() == {"a": [one, Trouble(two.code, two.what[:300])], "b": [three]}
    rig.troubles.report("a", [])
    rig.troubles.report("c", [])
    assert rig.troubles.reported() == {"b": [three]}
    rig.flush()
    assert rig.troubles.reported() == {}
