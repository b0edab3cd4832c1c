"""The history: the requests of clients and their answers, in files that survive their client.

Each line is one JSON object, on disk before the client goes on. `{"r", "t", "e": [[key, digest, given], …], "q"}` is
written before request `r` is sent, with its X-Request-ID if the client gives one. `{"r", "t", "s", "q", "a", "w"}` is
written once its outcome is known, with the answer's X-Request-ID, count of accepted events, and Retry-After. A request
without the second line is indeterminate: its client was killed. A request with a torn last line is indeterminate too.
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

DIGEST_BYTES = 16  # of SHA-256: two events of one run will hardly share 128 bits


class Outcome(StrEnum):
    """The outcome of a request, as its client knows it."""

    ACKED = "acked"  # 202: every event is durable
    REFUSED = "refused"  # nothing is stored: any other answer but `indeterminate`, or no connection
    INDETERMINATE = "indeterminate"  # any subset may be stored: 503 indeterminate, no answer, or a defect's


def outcome_of(status: str) -> Outcome:
    """The outcome of a status as clients note it: `202`, `429`, `503 unavailable`, `no connection`, `no answer`."""
    if status == "202":
        return Outcome.ACKED
    if status == "503 indeterminate" or status.startswith("no answer") or status[:3] in ("500", "502", "504"):
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
    """Hexadecimal digest of the content that must be stored for an event; the keys of attributes have no order."""
    text = json.dumps(
        [correlation_id, severity, message, source, timestamp, attributes], sort_keys=True, ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * DIGEST_BYTES]


def key_of(message: str) -> str:
    """The key at the start of an event's message. If the message has no key, the result equals no key ever sent."""
    return message.partition(" ")[0]


def given_id(key: str) -> str:
    """The eventId that a client gives to an event: most often the key, else one of 64 characters."""
    return key + "~\U0001f4a1é" * 3 + "x" * (55 - len(key)) if key.endswith("7") else key


class EventNote(NamedTuple):
    """An event as its client notes it. `given`: its eventId follows from its key; otherwise ingest gives it one."""

    key: str
    digest: str
    given: bool


@dataclass(frozen=True, slots=True)
class Told:
    """The fields of an answer besides its status. None: not given."""

    request_id: str | None = None
    accepted: int | None = None
    retry_after: str | None = None


class HistoryWriter:
    """Appends to one client's history. For several threads at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def sent(self, request: int, at: float, events: Iterable[EventNote], request_id: str | None = None) -> None:
        document = {"r": request, "t": at, "e": [[one.key, one.digest, int(one.given)] for one in events]}
        self._write(document | ({} if request_id is None else {"q": request_id}))

    def told(self, request: int, at: float, status: str, told: Told = Told()) -> None:
        said = {"q": told.request_id, "a": told.accepted, "w": told.retry_after}
        known = {name: value for name, value in said.items() if value is not None}
        self._write({"r": request, "t": at, "s": status, **known})

    def close(self) -> None:
        self._file.close()

    def _write(self, document: dict[str, Any]) -> None:
        line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())


@dataclass(slots=True, eq=False)
class Request:
    """One request. Times are seconds since the epoch by the machine's clock."""

    sent_at: float
    events: int
    answered_at: float | None = None
    status: str = "client killed"
    outcome: Outcome = Outcome.INDETERMINATE
    given_id: str | None = None  # its X-Request-ID; None: ingest names it
    told: Told = Told()

    @property
    def request_id(self) -> str | None:
        """The request id stored with its events; None if it is unknown."""
        return self.given_id or self.told.request_id


@dataclass(slots=True)
class Sent:
    """An event over all requests that carried it."""

    digest: str
    given: bool
    outcome: Outcome = Outcome.REFUSED
    requests: tuple[Request, ...] = ()  # requests that were not refused: they may have brought it into the log

    @property
    def carried(self) -> int:
        """How many requests may have brought it into the log."""
        return len(self.requests)


class HistoryError(Exception):
    """A history contradicts itself, or a line before its last one is damaged: the harness has a defect."""


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
                sent.requests = (*sent.requests, request)
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
                request = Request(document["t"], len(events), given_id=document.get("q"))
                open_requests[number] = events, request
                continue
            events, request = open_requests.pop(number)
            request.answered_at, request.status = document["t"], document["s"]
            request.outcome = outcome_of(request.status)
            request.told = Told(document.get("q"), document.get("a"), document.get("w"))
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
