"""Why no drain runs, from what Celery's workers answer."""

from typing import Any

import pytest

from pipeline.names import SinkName
from tasks.standstill import words

WORKER = "batches@host"
QUEUES = {WORKER: [{"name": "batches"}], "control@host": [{"name": "control"}]}
STATS = {WORKER: {"pool": {"max-concurrency": 2}}}


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
        (QUEUES, {WORKER: ["sluice.probe [rate_limit=1/m]", "sluice.drain"]}, {}, "its hints are lost or wait"),
        (QUEUES, {WORKER: ["sluice.drain [rate_limit=0]"]}, {}, "its hints are lost or wait"),  # it was lifted
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
