"""Why no drain runs, from what Celery's workers answer."""

from typing import Any

import pytest

from pipeline.names import SinkName
from tasks.standstill import words

WORKER = "batches@host"
QUEUES = {WORKER: [{"name": "batches"}], "control@host": [{"name": "control"}]}
STATS = {WORKER: {"pool": {"max-concurrency": 2}}}
IDLE: dict[str, Any] = {WORKER: []}


def drain(partition: int) -> dict[str, Any]:
    return {"name": "sluice.drain", "args": [partition]}


@pytest.mark.parametrize(
    ("queues", "tasks", "active", "said"),
    [
        ({}, {}, {}, "no worker takes batches"),
        ({"control@host": [{"name": "control"}]}, {}, {}, "no worker takes batches"),
        (
            QUEUES,
            {WORKER: ["sluice.drain [rate_limit=1/m]"]},
            {},
            "has a rate limit of Celery's, 1/m: a restart lifts it",
        ),
        (QUEUES, {WORKER: ["sluice.probe [rate_limit=1/m]", "sluice.drain"]}, IDLE, "its hints are lost or wait"),
        (QUEUES, {WORKER: ["sluice.drain [rate_limit=0]"]}, IDLE, "its hints are lost or wait"),  # it was lifted
        (QUEUES, {}, {WORKER: [drain(3)]}, "its drain has begun and holds nothing yet"),
        (QUEUES, {}, {WORKER: [drain(19)]}, "its drain has begun and holds nothing yet"),  # both are in one share
        (QUEUES, {}, {WORKER: [{"name": "sluice.drain", "args": ["?"]}]}, "its hints are lost or wait"),
        (
            QUEUES,
            {},
            {WORKER: [drain(0), drain(1)]},
            "all 2 processes that take batches are busy with other partitions",
        ),
        (QUEUES, {}, {WORKER: [drain(0)]}, "its hints are lost or wait"),
    ],
)
def test_the_likely_reason(queues: dict[str, Any], tasks: dict[str, Any], active: dict[str, Any], said: str) -> None:
    assert said in words(3, queues, tasks, active, STATS, sink=SinkName.POSTGRESQL, drains_max=8)


@pytest.mark.parametrize(
    ("active", "stats", "silent"),
    [({}, STATS, [WORKER]), (IDLE, {}, [WORKER]), ({"other@host": [drain(0)], **IDLE}, STATS, ["other@host"])],
)
def test_a_worker_that_did_not_answer_is_not_said_to_be_idle(
    active: dict[str, Any], stats: dict[str, Any], silent: list[str]
) -> None:
    queues = {**QUEUES, "other@host": [{"name": "batches"}]} if "other@host" in silent else QUEUES
    said = words(3, queues, {}, active, stats, sink=SinkName.POSTGRESQL, drains_max=8)
    assert said == (
        f"no drain holds it, and {silent[0]} did not say what it does within 0.5 s: it is busy or frozen, or its host "
        "has too little CPU time"
    )


def test_what_the_others_say_counts_beside_a_worker_that_did_not_answer() -> None:
    queues = {**QUEUES, "other@host": [{"name": "batches"}]}
    said = words(3, queues, {}, {WORKER: [drain(3)]}, STATS, sink=SinkName.POSTGRESQL, drains_max=8)
    assert "its drain has begun" in said
