"""A short run with the log on Kafka; in a file of its own, since it runs beside the one on Redis Streams."""

from collections.abc import Callable
from pathlib import Path

from faults.short import assert_promises_are_kept
from stack.servers import kafka_is_possible

FAULTS = ["commit.unanswered", "link-postgres.blackhole", "log.freeze", "log.partition-added"]


def test_promises_are_kept_under_faults(tmp_path: Path, missing: Callable[[str], None]) -> None:
    reason = kafka_is_possible()
    if reason is not None:
        missing(reason)
    assert_promises_are_kept("kafka", FAULTS, tmp_path)
