"""The history: what clients have sent, and what they were told, in files that survive their client.

One JSON object a line, each on disk before the client goes on. `{"r", "t", "e": [[key, digest, given], …]}` is written
before request `r` is sent, `{"r", "t", "s"}` once its outcome is known. A request without the second line is
indeterminate: its client was killed. So is what the last line meant where it is torn.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

DIGEST_BYTES = 16  # of SHA-256: two events of one run with the same 128 bits would be a wonder


class Outcome(StrEnum):
    """What a client knows of a request."""

    ACKED = "acked"  # 202: every event is durable
    REFUSED = "refused"  # nothing is stored: any other answer but `indeterminate`, or no connection
    INDETERMINATE = "indeterminate"  # any subset may be stored: 503 indeterminate, or no answer


def outcome_of(status: str) -> Outcome:
    """The outcome of a status as clients note it: `202`, `429`, `503 unavailable`, `no connection`, `no answer`."""
    if status == "202":
        return Outcome.ACKED
    if status == "503 indeterminate" or status.startswith("no answer"):
        return Outcome.INDETERMINATE
    return Outcome.REFUSED


def digest(
    correlation_id: str,
    severity: str,
    message: str,
    source: str,
    timestamp: int,
    *,
    attributes: Mapping[str, Any] | None,
) -> str:
    """Hexadecimal digest of an event's content, as it must come out again: the keys of attributes have no order."""
    text = json.dumps(
        [correlation_id, severity, message, source, timestamp, attributes], sort_keys=True, ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * DIGEST_BYTES]


class EventNote(NamedTuple):
    """An event as its client notes it. `given`: its eventId is its key; otherwise ingest gives it one."""

    key: str
    digest: str
    given: bool


class HistoryWriter:
    """Appends to one client's history. For several threads at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def sent(self, request: int, at: float, events: Iterable[EventNote]) -> None:
        self._write({"r": request, "t": at, "e": [[one.key, one.digest, int(one.given)] for one in events]})

    def told(self, request: int, at: float, status: str) -> None:
        self._write({"r": request, "t": at, "s": status})

    def close(self) -> None:
        self._file.close()

    def _write(self, document: dict[str, Any]) -> None:
        line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())


@dataclass(slots=True)
class Request:
    """One request. Times are seconds since the epoch by the machine's clock."""

    sent_at: float
    events: int
    answered_at: float | None = None
    status: str = "client killed"
    outcome: Outcome = Outcome.INDETERMINATE


@dataclass(slots=True)
class Sent:
    """An event over all requests that carried it."""

    digest: str
    given: bool
    outcome: Outcome = Outcome.REFUSED
    carried: int = 0  # requests that may have brought it into the log: those not refused


class HistoryError(Exception):
    """A history contradicts itself, or is damaged elsewhere than in its last line: the harness has a defect."""


@dataclass
class History:
    """All clients' histories together."""

    events: dict[str, Sent] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def add(self, carried: Iterable[EventNote], request: Request) -> None:
        """Add a request with its events."""
        self.requests.append(request)
        for key, content, given in carried:
            sent = self.events.get(key)
            if sent is None:
                sent = self.events[key] = Sent(content, given)
            elif (sent.digest, sent.given) != (content, given):
                raise HistoryError(f"{key} was sent with two contents")
            if request.outcome is not Outcome.REFUSED:
                sent.carried += 1
            if _RANK[request.outcome] > _RANK[sent.outcome]:
                sent.outcome = request.outcome


_RANK = {Outcome.REFUSED: 0, Outcome.INDETERMINATE: 1, Outcome.ACKED: 2}


def read_histories(paths: Iterable[Path]) -> History:
    """Read the histories of all clients. Raises HistoryError."""
    history = History()
    for path in sorted(paths):
        open_requests: dict[int, tuple[list[EventNote], Request]] = {}
        for document in _lines(path):
            number = document["r"]
            if "e" in document:
                events = [EventNote(key, content, bool(given)) for key, content, given in document["e"]]
                open_requests[number] = events, Request(document["t"], len(events))
                continue
            events, request = open_requests.pop(number)
            request.answered_at, request.status = document["t"], document["s"]
            request.outcome = outcome_of(request.status)
            history.add(events, request)
        for events, request in open_requests.values():
            history.add(events, request)
    return history


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file whose last line may be torn."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                document: dict[str, Any] = json.loads(line)
            except ValueError:
                raise HistoryError(f"{path} is damaged: {line[:80]!r}") from None
            yield document
