"""`python -m checks.soak.client`: traffic from one process, with a history that is on disk before each step.

Bodies have 1 to 200 events with many correlation ids, in all shapes (see `content`). Half of them give their own
eventIds: those are sent again where an answer was indeterminate, and sometimes where it was a 202. Most name their
requests. Surges go above the admitted rate. Prints one line of JSON with its counts each second. SIGTERM ends it in
order; SIGUSR1 tells it to send faster, since no more faults come.
"""

import argparse
import heapq
import http.client
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from checks.soak.content import Content, encoded, pieces, severity_of
from checks.soak.history import EventNote, HistoryWriter, Outcome, Told, digest, given_id, outcome_of

THREADS = 6
ANSWER_SECONDS_MAX = 2.5  # ingest answers within APPEND_SECONDS_MAX, unless it is frozen
SIZES = (1, 1, 5, 20, 50, 100, 200)
SURGE_PERIOD_SECONDS = 8.0
SURGE_SECONDS = 1.5
SURGE_FACTOR = 3.0
HURRY_FACTOR = 3.0
REPEATS_MAX = 200  # bodies that wait to be sent again; others are not sent again
NAMED_SHARE = 0.75  # of requests that give an X-Request-ID

Body = tuple[list[dict[str, Any]], list[EventNote]]


class Client:
    """Several threads that share one pace and one history."""

    def __init__(self, ports: list[int], name: str, path: Path, *, rate: float, seed: int) -> None:
        self._ports = ports
        self._name = name
        self._history = HistoryWriter(path)
        self._rate = rate
        self._random = random.Random(f"{seed} {name}")
        self._content = Content(self._random)
        self._lock = threading.Lock()
        self._next_event = self._next_request = 0
        self._due = self._started = time.monotonic()
        self._repeats: list[tuple[float, int, Body]] = []  # due at, tie-breaker
        # Counts by outcome, repeats included; `sent` counts each sent event once.
        self._events: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.hurry = False

    def run(self) -> None:
        threads = [threading.Thread(target=self._send_all, args=(index,), daemon=True) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        while not self.stopping.wait(1.0):
            self._say()
        for thread in threads:
            thread.join(ANSWER_SECONDS_MAX * 3)
        self._say()

    def _say(self) -> None:
        with self._lock:
            print(json.dumps(self._events), flush=True)

    # --- content of requests -----------------------------------------------------------------------

    def _make(self, size: int) -> Body:
        """New events with their notes. Under the lock."""
        given = self._random.random() < 0.5
        keys = [f"{self._name}-{self._next_event + index:07d}" for index in range(size)]  # they grow within a body
        self._next_event += size
        events = self._content.events(keys)
        notes = []
        for key, event in zip(keys, events, strict=True):
            content = digest(
                event["correlationId"],
                severity_of(event["severity"]),
                event["message"],
                event["source"],
                event["timestamp"],
                attributes=event.get("attributes"),
            )
            if given:
                event["eventId"] = given_id(key)
            notes.append(EventNote(key, content, given))
        return events, notes

    def _next(self) -> tuple[float, int, Body, int] | None:
        """The next request: due time, number, body and count of new events; None if nothing is left to send."""
        with self._lock:
            if self.stopping.is_set():
                return None
            now = time.monotonic()
            request = self._next_request
            self._next_request += 1
            if self._repeats and self._repeats[0][0] <= now:
                body, new = heapq.heappop(self._repeats)[2], 0
            else:
                new = self._random.choice(SIZES)
                body = self._make(new)
            surging = (now - self._started) % SURGE_PERIOD_SECONDS < SURGE_SECONDS
            pace = self._rate * (SURGE_FACTOR if surging else 1.0) * (HURRY_FACTOR if self.hurry else 1.0)
            self._due = max(self._due, now - 0.5) + len(body[0]) / pace
            return self._due, request, body, new

    def _settle(self, body: Body, outcome: Outcome, request: int) -> None:
        """Count an outcome, and have some bodies sent again."""
        with self._lock:
            self._events[outcome.value] += len(body[0])
            given = body[1][0].given
            chance = {Outcome.INDETERMINATE: 0.8 * given, Outcome.REFUSED: 0.2, Outcome.ACKED: 0.03 * given}[outcome]
            if self._random.random() < chance and len(self._repeats) < REPEATS_MAX:
                due = time.monotonic() + self._random.uniform(0.2, 4.0)
                heapq.heappush(self._repeats, (due, request, body))

    # --- sending -------------------------------------------------------------------------------------

    def _send_all(self, index: int) -> None:
        connection: http.client.HTTPConnection | None = None
        while (todo := self._next()) is not None:
            due, request, body, new = todo
            if self.stopping.wait(max(0.0, due - time.monotonic())):
                break
            data, headers = encoded(body[0], request)
            request_id = f"{self._name}.{request}" if request % 100 < 100 * NAMED_SHARE else None
            if request_id is not None:
                headers["X-Request-ID"] = request_id
            self._history.sent(request, time.time(), body[1], request_id)
            with self._lock:
                self._events["sent"] += new
            chunks = pieces(data, request)
            status, told, connection = self._post(connection, index, data if chunks is None else chunks, headers)
            self._history.told(request, time.time(), status, told)
            self._settle(body, outcome_of(status), request)
        if connection is not None:
            connection.close()

    def _post(
        self,
        connection: http.client.HTTPConnection | None,
        index: int,
        data: bytes | list[bytes],
        headers: dict[str, str],
    ) -> tuple[str, Told, http.client.HTTPConnection | None]:
        """The status, the other parts of the answer, and the connection if it can be used again."""
        try:
            if connection is None:
                port = self._ports[index % len(self._ports)]
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX)
                connection.connect()
        except OSError:
            self.stopping.wait(0.05)
            return "no connection", Told(), None
        try:
            is_chunked = isinstance(data, list)
            connection.request("POST", "/api/logs", body=data, headers=headers, encode_chunked=is_chunked)
            answer = connection.getresponse()
            content = answer.read()
            document = json.loads(content)
            status = str(answer.status)
            if answer.status != 202:
                status += "" if answer.status == 429 else f" {document['error']['code']}"
            told = Told(answer.getheader("X-Request-ID"), document.get("accepted"), answer.getheader("Retry-After"))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            connection.close()
            return f"no answer: {type(error).__name__}", Told(), None
        if answer.will_close:
            connection.close()
            return status, told, None
        return status, told, connection


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m checks.soak.client")
    parser.add_argument("--ports", required=True, help="ports of ingest, separated by commas")
    parser.add_argument("--name", required=True, help="prefix of every key")
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True, help="events/s")
    parser.add_argument("--seed", type=int, required=True)
    asked = parser.parse_args()
    ports = [int(port) for port in asked.ports.split(",")]
    client = Client(ports, asked.name, asked.history, rate=asked.rate, seed=asked.seed)
    signal.signal(signal.SIGTERM, lambda *_: client.stopping.set())
    signal.signal(signal.SIGUSR1, lambda *_: setattr(client, "hurry", True))
    client.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
