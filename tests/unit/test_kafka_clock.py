"""The Kafka library measures by the monotonic clock."""

import ast
import inspect
import time

import pytest
from kafka.cluster import ClusterMetadata

from pipeline.log.kafka_clock import MEASURING_MODULES, measure_by_monotonic_clock


def test_metadata_that_was_asked_for_while_the_clock_was_ahead_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure_by_monotonic_clock()
    read = time.time  # noqa: TID251 - the clock that the library reads
    with monkeypatch.context() as stepped:
        stepped.setattr(time, "time", lambda: read() + 3600)
        cluster = ClusterMetadata(retry_backoff_ms=0)
        cluster.failed_update(OSError("the broker is away"))
    cluster.request_update()
    assert cluster.ttl() == 0


@pytest.mark.parametrize("module", MEASURING_MODULES, ids=lambda module: module.__name__)
def test_a_module_finds_all_that_it_uses_of_time(module: object) -> None:
    measure_by_monotonic_clock()
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    assert "time" in used  # a later version may not need the replacement
    assert used <= set(vars(module.time))  # type: ignore[attr-defined]
