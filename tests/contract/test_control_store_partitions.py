"""Pauses of one partition, in the contract of ControlStore, on Redis and in memory."""

import json

import pytest
import redis

from pipeline.names import KEY_PAUSE, ControlEventKind, PauseReason
from pipeline.ports.control import OperatorPause, Pause, paused
from support.control import ControlRig, control_settings, memory_rig, redis_rig

OPERATOR, POISON, LOG_GAP = PauseReason.OPERATOR, PauseReason.POISON, PauseReason.LOG_GAP


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        rig = memory_rig(control_settings("redis://nowhere"))
    else:
        rig = redis_rig(control_settings(request.getfixturevalue("control_redis").url))
    rig.store.restore([], actor="controller")
    return rig


def held(rig: ControlRig) -> list[tuple[PauseReason, int | None]]:
    return [(pause.reason, pause.partition) for pause in pauses(rig)]


def pauses(rig: ControlRig) -> tuple[Pause, ...]:
    found = rig.store.state().pauses
    assert found is not None
    return found


def test_a_reason_holds_for_the_partitions_it_was_given_for_and_stops_no_other(rig: ControlRig) -> None:
    # Given two partitions with a hole, and a poisoned one
    generations = [
        rig.store.pause(LOG_GAP, actor="drain", why="a hole", partition=3),
        rig.store.pause(LOG_GAP, actor="drain", why="another", partition=0),
        rig.store.pause(POISON, actor="drain", why="a batch", partition=1),
    ]
    # Then each stands for itself, oldest first, and only they are paused
    assert [(one.partition, one.generation, one.why) for one in pauses(rig)] == [
        (3, generations[0], "a hole"), (0, generations[1], "another"), (1, generations[2], "a batch"),
    ]  # fmt: skip
    assert [partition for partition in range(5) if paused(pauses(rig), partition)] == [0, 1, 3]
    assert not paused(pauses(rig))  # the system as a whole
    # And the same again is the same occurrence
    assert rig.store.pause(LOG_GAP, actor="late", why="again", partition=3) == generations[0]
    # When one is lifted, by its own generation only
    assert not rig.store.resume(LOG_GAP, generation=generations[1], actor="ann", why="other", partition=3)
    assert rig.store.resume(LOG_GAP, generation=generations[0], actor="ann", why="skipped", partition=3)
    assert not rig.store.resume(LOG_GAP, generation=None, actor="ann", why="again", partition=3)
    # Then the others stay
    assert held(rig) == [(LOG_GAP, 0), (POISON, 1)]
    resumed = rig.events.last(1)[0]
    assert (resumed.kind, resumed.data["reason"], resumed.data["partition"], resumed.data["left"]) == (
        ControlEventKind.RESUMED, "log_gap", "3", "log_gap:0 poison:1",
    )  # fmt: skip
    # And the last one takes its reason along
    assert rig.store.resume(LOG_GAP, generation=None, actor="ann", why="skipped", partition=0)
    assert held(rig) == [(POISON, 1)]


def test_a_reason_of_the_whole_system_covers_every_partition(rig: ControlRig) -> None:
    rig.store.pause(POISON, actor="drain", why="one", partition=2)
    whole = rig.store.pause(POISON, actor="an older version", why="all")
    assert held(rig) == [(POISON, None)]
    assert rig.store.pause(POISON, actor="drain", why="one", partition=2) == whole
    assert not rig.store.resume(POISON, generation=None, actor="ann", why="one", partition=2)
    assert paused(pauses(rig), 2)
    assert rig.store.resume(POISON, generation=whole, actor="ann", why="all")
    assert held(rig) == []


def test_lifting_a_reason_without_a_partition_lifts_it_for_all(rig: ControlRig) -> None:
    for partition in (0, 1):
        rig.store.pause(LOG_GAP, actor="drain", why="a hole", partition=partition)
    assert rig.store.resume(LOG_GAP, generation=None, actor="ann", why="go on")
    assert held(rig) == []


def test_the_partitions_come_back_after_a_flush(rig: ControlRig) -> None:
    rig.flush()
    asked = [
        OperatorPause(OPERATOR, "ann", "wait", 1e9),
        OperatorPause(LOG_GAP, "drain", "a hole", 1e9, 4),
        OperatorPause(LOG_GAP, "drain", "a hole", 2e9, 5),
    ]
    assert rig.store.restore(asked, actor="controller")
    assert held(rig) == [(OPERATOR, None), (LOG_GAP, 4), (LOG_GAP, 5)]
    assert [one.since for one in pauses(rig)] == [1e9, 1e9, 2e9]
    assert rig.events.last(1)[0].data["reasons"] == "operator log_gap:4 log_gap:5"


def test_a_process_of_an_older_version_reads_a_partitions_pause_as_one_of_the_whole_system(
    request: pytest.FixtureRequest,
) -> None:
    # Given what this version writes
    rig = redis_rig(control_settings(request.getfixturevalue("control_redis").url))
    rig.store.restore([], actor="controller")
    first = rig.store.pause(LOG_GAP, actor="drain", why="a hole", partition=3)
    second = rig.store.pause(LOG_GAP, actor="drain", why="another", partition=1)

    def as_before() -> dict[PauseReason, tuple[int, float, str, str]]:
        """As versions before pauses by partition read it; raises where they would."""
        with redis.Redis.from_url(rig.settings.redis_url, decode_responses=True) as client:
            fields = client.hgetall(rig.settings.key_prefix + KEY_PAUSE)
        fields.pop("restored")
        entries = {PauseReason(reason): json.loads(text) for reason, text in fields.items()}
        return {
            reason: (int(entry["generation"]), float(entry["since"]), str(entry["by"]), str(entry["why"]))
            for reason, entry in entries.items()
        }

    # Then it reads one reason, that of the oldest partition, which pauses everything for it
    assert [(reason, *one[::3]) for reason, one in as_before().items()] == [(LOG_GAP, first, "a hole")]
    rig.store.resume(LOG_GAP, generation=None, actor="ann", why="skipped", partition=3)
    assert [(reason, *one[::3]) for reason, one in as_before().items()] == [(LOG_GAP, second, "another")]


def test_what_an_older_version_wrote_pauses_the_whole_system(request: pytest.FixtureRequest) -> None:
    rig = redis_rig(control_settings(request.getfixturevalue("control_redis").url))
    rig.store.restore([], actor="controller")
    entry = {"generation": 7, "since": "1e9", "by": "drain", "why": "partition 3: a hole"}
    with redis.Redis.from_url(rig.settings.redis_url) as client:
        client.hset(rig.settings.key_prefix + KEY_PAUSE, "log_gap", json.dumps(entry))
    assert pauses(rig) == (Pause(LOG_GAP, 7, 1e9, "drain", "partition 3: a hole"),)
    assert paused(pauses(rig), 5)
    assert rig.store.resume(LOG_GAP, generation=7, actor="ann", why="go on")
