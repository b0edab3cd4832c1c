"""Counters of the event loop are shown as those of the library are."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.metrics import Declared, LoopCounter

LABELLED = Declared("seen", "What was seen", ("kind", "status"))


def test_series_are_shown_by_their_labels_and_count_from_the_start() -> None:
    registry = CollectorRegistry(auto_describe=True)
    counter, plain = LoopCounter(LABELLED, registry), LoopCounter(Declared("all", "All"), registry)
    counter.labels("a", 429).value += 3
    counter.labels("b", 503)
    assert counter.labels("a", "429") is counter.labels("a", 429)
    assert registry.get_sample_value("seen_total", {"kind": "a", "status": "429"}) == 3
    assert registry.get_sample_value("seen_total", {"kind": "b", "status": "503"}) == 0
    assert registry.get_sample_value("all_total") == 0
    plain.labels().value += 2
    lines = generate_latest(registry).decode().splitlines()
    assert "# TYPE seen_total counter" in lines
    assert 'seen_total{kind="a",status="429"} 3.0' in lines
    assert "all_total 2.0" in lines
    assert b"seen" not in generate_latest(registry.restricted_registry(["all_total"]))


def test_another_number_of_labels_is_a_defect() -> None:
    with pytest.raises(ValueError, match="seen has the labels"):
        LoopCounter(LABELLED, CollectorRegistry()).labels("a")
