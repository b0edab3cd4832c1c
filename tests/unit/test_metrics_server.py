"""The port of a process' metrics."""

import multiprocessing
import socket
import threading
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from pipeline import metrics_server
from pipeline.metrics_server import serve_metrics
from stack.servers import free_port


def _read(host: str, port: int) -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_each_request_gets_the_present_values_until_the_end(host: str, shown: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"this machine can't listen on {host}: {error}")
    registry, port = CollectorRegistry(), free_port()
    count = Counter("answers", "A count", registry=registry)
    stop = serve_metrics(host, port, registry)
    for number in range(3):
        assert f"answers_total {number}.0" in _read(shown, port)
        count.inc()
    stop()
    # Then the port is free at once
    with socket.create_server((host, port), family=family):
        pass


def test_it_wakes_for_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a count of the waits of its thread, and of their limits
    limits: list[float | None] = []
    asleep = threading.Event()

    class Counted(metrics_server.selectors.DefaultSelector):  # type: ignore[misc, name-defined]
        def select(self, timeout: float | None = None) -> Any:
            limits.append(timeout)
            asleep.set()
            return super().select(timeout)

    monkeypatch.setattr(metrics_server.selectors, "DefaultSelector", Counted)  # type: ignore[attr-defined]
    port = free_port()
    stop = serve_metrics("127.0.0.1", port, CollectorRegistry())
    try:
        assert asleep.wait(60)
        # When a client comes, and one that is gone before it is answered
        _read("127.0.0.1", port)
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        _read("127.0.0.1", port)
    finally:
        stop()
    # Then it waited once for each, and for ever
    assert set(limits) == {None}
    assert len(limits) <= 4


def test_it_ends_while_a_child_lives_that_was_forked_since() -> None:
    # Given a worker that has replaced a child of its pool
    stop = serve_metrics("127.0.0.1", free_port(), CollectorRegistry())
    forking = multiprocessing.get_context("fork")
    over = forking.Event()
    child = forking.Process(target=over.wait)
    child.start()
    try:
        ending = threading.Thread(target=stop, daemon=True)
        ending.start()
        ending.join(60)
        assert not ending.is_alive()
    finally:
        over.set()
        child.join()


def test_a_port_that_is_taken_is_no_reason_to_end(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stop = serve_metrics("127.0.0.1", taken.getsockname()[1], CollectorRegistry())
    assert "no metrics: can't listen" in caplog.text
    stop()
