"""Batches at a steady rate from one thread, while a scenario runs."""

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from stack.servers import LOOPBACK


@dataclass
class SteadyLoad:
    """Sends batches of `batch_events` at `rate` events/s, one at a time, until it is stopped or its time is over."""

    port: int
    rate: float
    batch_events: int
    seconds_max: float
    statuses: Counter[int] = field(default_factory=Counter)  # requests

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more; idempotent."""
        self._stop.set()
        self._thread.join(10)

    @property
    def accepted(self) -> int:
        """Events that were answered with 202."""
        return self.statuses[202] * self.batch_events

    @property
    def refused(self) -> int:
        """Events that got any other answer."""
        return self.statuses.total() * self.batch_events - self.accepted

    def _send(self) -> None:
        event = {"severity": "INFO", "message": "steady", "source": "bench", "timestamp": 1_700_000_000_000}
        body = json.dumps([{**event, "correlationId": f"c{n}"} for n in range(self.batch_events)])
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=10)
        due = started = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())) and due - started < self.seconds_max:
            due += self.batch_events / self.rate
            connection.request("POST", "/api/logs", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            self.statuses[answer.status] += 1
        connection.close()
