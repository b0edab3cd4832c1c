"""Clients that remember what they were told, and the check of it against what PostgreSQL holds."""

import contextlib
import http.client
import json
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psycopg2

from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until


def event(number: int, *, run: str, event_id: str | None = None) -> dict[str, Any]:
    """A valid event whose fields follow from its number."""
    return {
        "correlationId": f"{run}-{number % 97}",
        "severity": ("INFO", "WARN", "ERROR")[number % 3],
        "message": f"event {number} of {run}\twith a tab, a \\ and an é",
        "source": f"test/{number % 5}",
        "timestamp": 1_700_000_000_000 + number,
        "eventId": event_id or f"{run}-{number}",
        "attributes": {"number": number, "even": number % 2 == 0},
    }


@dataclass
class Outcomes:
    """What became of each event id, by what its sender was told last."""

    acked: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)  # 429, 503 unavailable: nothing may be stored
    indeterminate: set[str] = field(default_factory=set)  # 503 indeterminate, or no answer: may be stored or not
    statuses: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, ids: list[str], status: str) -> None:
        with self.lock:
            self.statuses[status] += 1
            if status == "202":
                self.acked.update(ids)
            elif status in ("429", "503 unavailable", "no connection"):
                self.refused.update(ids)
            else:
                self.indeterminate.update(ids)


class Traffic:
    """Sends batches at a steady rate from several threads until it is stopped; bounded in count and time.

    Every event is sent once, whatever the answer: a refusal must then mean that it is not stored.
    """

    def __init__(
        self, url: str, *, events_per_second: float, events_max: int, batch: int = 10, threads: int = 4
    ) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.outcomes = Outcomes()
        self._url = urlsplit(url)
        self._batch = batch
        self._interval = batch * threads / events_per_second
        self._batches_max = events_max // (batch * threads)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_all, args=(index, threads), daemon=True) for index in range(threads)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS_MAX + 10)
            assert not thread.is_alive(), "a sender hangs: some request got no answer within its time-out"

    def wait_acked(self, count: int, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """Until `count` more events than now are acknowledged."""
        wanted = len(self.outcomes.acked) + count
        wait_until(
            lambda: len(self.outcomes.acked) >= wanted, f"{count} more acknowledged events", seconds_max=seconds_max
        )

    def _send_all(self, index: int, threads: int) -> None:
        connection: http.client.HTTPConnection | None = None
        due = time.monotonic() + self._interval * index / threads
        for number in range(self._batches_max):
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                break
            due += self._interval
            first = (number * threads + index) * self._batch
            events = [event(first + i, run=self.run) for i in range(self._batch)]
            ids = [one["eventId"] for one in events]
            try:
                if connection is None:
                    connection = self._connect()
            except OSError:
                self.outcomes.note(ids, "no connection")
                continue
            try:
                connection.request(
                    "POST", "/api/logs", body=json.dumps(events), headers={"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                body = answer.read()
                status = str(answer.status)
                if answer.status == 503:
                    status += f" {json.loads(body)['error']['code']}"
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException):
                status = "no answer"
                if connection is not None:
                    connection.close()
                connection = None
            self.outcomes.note(ids, status)
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        assert self._url.hostname is not None
        connection = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=WAIT_SECONDS_MAX)
        connection.connect()
        return connection


def stored_ids(database_url: str, run: str) -> Counter[str]:
    """How often each event id of a run is in log_events."""
    with (
        contextlib.closing(psycopg2.connect(database_url, connect_timeout=int(WAIT_SECONDS_MAX))) as connection,
        connection.cursor() as c,
    ):
        c.execute("SELECT event_id FROM log_events WHERE event_id LIKE %s", (f"{run}-%",))
        return Counter(row[0] for row in c.fetchall())


def assert_kept_promises(traffic: Traffic, database_url: str, *, seconds_max: float = RUN_SECONDS_MAX) -> None:
    """Every acknowledged event is stored exactly once; nothing refused is; nothing that was never sent is.

    Waits until all acknowledged ones are there, and then until no more come.
    """
    outcomes = traffic.outcomes

    def missing() -> set[str]:
        try:
            return outcomes.acked - set(stored_ids(database_url, traffic.run))
        except psycopg2.Error:
            return {"PostgreSQL does not answer"}

    deadline = time.monotonic() + seconds_max
    while missing():
        assert time.monotonic() < deadline, f"{len(missing())} acknowledged events are not stored: {outcomes.statuses}"
        time.sleep(0.2)
    stored = stored_ids(database_url, traffic.run)
    assert [one for one, count in stored.items() if count != 1] == []
    assert set(stored) & outcomes.refused == set()
    assert set(stored) <= outcomes.acked | outcomes.indeterminate
