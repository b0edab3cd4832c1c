"""The contracts of Leases, Progress and Floors, on Redis and in memory."""

import threading

import pytest

from pipeline.errors import FencedError
from support.control import ControlRig, control_settings, eventually, memory_rig, redis_rig


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    # A drain's time limit that a test can wait for.
    limits = {"drain_run_seconds_max": 0.1, "drain_hard_seconds_max": 1.0}
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere", **limits))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url, **limits))


# --- Leases ---------------------------------------------------------------------------------------


def test_a_lease_is_one_processs_until_it_is_given_back(rig: ControlRig) -> None:
    token = rig.leases.take("duty", seconds=60.0)
    assert token
    assert rig.leases.take("duty", seconds=60.0) is None
    assert rig.leases.take("another duty", seconds=60.0) is not None
    rig.leases.give_back("duty", token)
    assert rig.leases.take("duty", seconds=60.0) not in (None, token)


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


# --- Floors ---------------------------------------------------------------------------------------


def test_a_mirror_that_was_never_seeded_knows_nothing(rig: ControlRig) -> None:
    assert rig.floors.fence("log", "a") is None
    rig.floors.raise_floor("log", "a", 0, 10)
    assert rig.floors.fence("log", "a") is None


def test_floors_rise_and_never_fall(rig: ControlRig) -> None:
    rig.floors.fence("log", "a")
    rig.floors.seed("log", {0: 100, 1: 50})
    rig.floors.raise_floor("log", "a", 0, 120)
    rig.floors.raise_floor("log", "a", 1, 40)
    rig.floors.raise_floor("log", "a", 2, 7)
    rig.floors.seed("log", {0: 110, 1: 45, 3: 0})
    assert rig.floors.fence("log", "a") == {0: 120, 1: 50, 2: 7, 3: 0}
    assert rig.floors.fence("another log", "a") is None


def test_a_mirror_that_was_seeded_with_nothing_is_known(rig: ControlRig) -> None:
    rig.floors.seed("log", {})
    assert rig.floors.fence("log", "a") == {}


def test_an_older_incarnation_is_fenced_off(rig: ControlRig) -> None:
    # Given a drain of incarnation a
    rig.floors.fence("log", "a")
    rig.floors.raise_floor("log", "a", 0, 10)
    # When the log was restarted
    rig.floors.fence("log", "b")
    # Then it may not commit any more, and those of b may
    with pytest.raises(FencedError):
        rig.floors.raise_floor("log", "a", 0, 20)
    rig.floors.raise_floor("log", "b", 0, 15)
    rig.floors.seed("log", {})
    assert rig.floors.fence("log", "b") == {0: 15}
    # However long it waits
    threading.Event().wait(1.1)
    with pytest.raises(FencedError):
        rig.floors.raise_floor("log", "a", 0, 20)


def test_after_a_flush_the_first_drain_claims_the_place_and_the_mirror_stays_unknown(rig: ControlRig) -> None:
    rig.floors.fence("log", "b")
    rig.floors.seed("log", {0: 5})
    rig.flush()
    rig.floors.raise_floor("log", "b", 0, 10)
    with pytest.raises(FencedError):
        rig.floors.raise_floor("log", "a", 0, 20)
    assert rig.floors.fence("log", "b") is None


def test_a_claim_of_an_incarnation_already_over_lapses_with_its_last_drain(rig: ControlRig) -> None:
    # Given a flush, after which a drain of the old incarnation was the first
    rig.floors.raise_floor("log", "a", 0, 10)
    with pytest.raises(FencedError):
        rig.floors.raise_floor("log", "b", 0, 20)

    # Then the drains of the new one are not shut out for ever
    def raised() -> bool:
        try:
            rig.floors.raise_floor("log", "b", 0, 20)
        except FencedError:
            return False
        return True

    eventually(raised)
    with pytest.raises(FencedError):
        rig.floors.raise_floor("log", "a", 0, 30)


def test_a_fence_takes_a_claim_over_and_does_not_lapse(rig: ControlRig) -> None:
    rig.floors.raise_floor("log", "a", 0, 10)
    rig.floors.fence("log", "b")
    rig.floors.raise_floor("log", "b", 0, 20)
    threading.Event().wait(1.1)  # longer than a claim holds
    with pytest.raises(FencedError):
        rig.floors.raise_floor("log", "a", 0, 30)
