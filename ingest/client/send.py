"""`python -m ingest.client FILE…`: send events from NDJSON files to INGEST_URL, and report the results.

Every event without an eventId gets one (UUIDv7), and keeps it in every repeat. So a repeat after an unknown outcome
stores nothing twice. The client sends one batch at a time, in the order of the input. The batch bounds the memory,
whatever the size of the files. While the server refuses for its rate (429), batches are smaller: a large one makes all
other clients wait until the rate has paid for it.

Exit code: 0 if every event was accepted, 1 if one was not, 2 if nothing could be sent, 130 after Ctrl-C.
"""

import argparse
import contextlib
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import msgspec
from tqdm import tqdm
from uuid_utils import uuid7

from ingest.client.wire import Endpoint, NoResponseError, NotSentError, Response
from pipeline.clock import Clock, SystemClock
from pipeline.errors import SettingsError
from pipeline.settings import Settings
from pipeline.text import on_one_line

LINE_BYTES_MAX: Final = 4 << 20  # of the input; a longer line can't be an event
BATCH_BYTES_MAX: Final = 512 * 1024  # half of the server's default limit
REASONS_MAX: Final = 20  # rejections that are listed one by one
REASON_KINDS_MAX: Final = 100  # kinds of rejections that are counted separately
EVENTS_MIN: Final = 20  # a batch is not made smaller than this after 429: more requests would only cost more
BACKOFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)  # between attempts if the server sends no Retry-After


class GiveUpError(Exception):
    """Continuing makes no sense; the message has the reason."""


@dataclass(slots=True)
class Item:
    """One event of the input: its line as it is sent, and its place in the input."""

    body: bytes
    place: str  # file:line
    input_bytes: int


@dataclass(slots=True)
class Batch:
    """Events that are sent together. `is_repeat`: it was sent before, and its events may be stored already."""

    items: list[Item]
    is_repeat: bool = False


@dataclass
class Report:
    """The results of the events."""

    read: int = 0  # events of the input so far
    accepted: int = 0
    repeated: int = 0  # accepted events that were sent again because the first outcome was unknown
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def reject(self, place: str, reason: str) -> None:
        """Record an event that the server, or a check of the line, has permanently rejected."""
        self.rejected += 1
        if len(self.reasons) < REASONS_MAX:
            self.reasons.append(f"{place}: {reason}")
        kind = reason if reason in self.kinds or len(self.kinds) < REASON_KINDS_MAX else "other reasons"
        self.kinds[kind] += 1

    @property
    def given_up(self) -> int:
        """Events that were read, but are neither accepted nor rejected."""
        return self.read - self.accepted - self.rejected

    def lines(self) -> Iterator[str]:
        """The lines of the printed report."""
        yield f"accepted {self.accepted}"
        yield f"repeated {self.repeated}"
        yield f"rejected {self.rejected}"
        for kind, count in self.kinds.most_common():
            yield f"  {count} x {kind}"
        for reason in self.reasons:
            yield f"  {reason}"
        if self.rejected > len(self.reasons):
            yield f"  ... and {self.rejected - len(self.reasons)} more"
        if self.given_up:
            yield f"given up {self.given_up}"


def read_items(name: str, stream: IO[bytes], report: Report) -> Iterator[Item]:
    """The events of one input, ready to send. Records lines that can't be events as rejected."""
    number = 0
    while line := stream.readline(LINE_BYTES_MAX):
        number += 1
        place = f"{name}:{number}"
        if not line.strip():
            continue
        report.read += 1
        if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(LINE_BYTES_MAX)
            report.reject(place, f"the line is longer than {LINE_BYTES_MAX} bytes")
            continue
        try:
            yield Item(with_event_id(line.strip()), place, len(line))
        except ValueError as error:
            report.reject(place, str(error))


class _Identified(msgspec.Struct):
    """The fields of an event that the client itself reads."""

    event_id: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="eventId", default=msgspec.UNSET)


_decode_identified = msgspec.json.Decoder(_Identified).decode


def with_event_id(line: bytes) -> bytes:
    """A line with an eventId; everything else stays unchanged. Raises ValueError if it is no JSON object."""
    try:
        given = _decode_identified(line).event_id
        if given is not msgspec.UNSET and bytes(given) != b"null":
            return line
        if given is not msgspec.UNSET:
            # A null after an id put in front would win over that id: encode this line again.
            fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            return msgspec.json.encode({**fields, "eventId": str(uuid7())})
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"the line is no JSON object: {error}") from None
    rest = line[1:].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return b'{"eventId":"%b"%b%b' % (str(uuid7()).encode(), comma, rest)


def batches(items: Iterator[Item], events_max: int) -> Iterator[Batch]:
    """Collect events into batches of bounded count and size."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == events_max or size + len(item.body) > BATCH_BYTES_MAX):
            yield Batch(batch)
            batch, size = [], 0
        batch.append(item)
        size += len(item.body) + 1
    if batch:
        yield Batch(batch)


class Sender:
    """Sends batches until each event is accepted or rejected, or `patience_seconds` pass without progress.

    A 429 counts as progress: the server works, and events of other clients get through. After it, bodies have half as
    many events, and grow by EVENTS_MIN with each body that is accepted.
    """

    def __init__(self, endpoint: Endpoint, report: Report, clock: Clock, *, patience_seconds: float, bar: Any) -> None:
        self._endpoint = endpoint
        self._report = report
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._bar = bar
        self._progress_at = clock.monotonic()
        self._failures = 0  # in a row
        self._events_max = sys.maxsize  # in one body
        self.pending: deque[Batch] = deque()

    def send(self, batch: Batch) -> None:
        """Send one batch. Raises GiveUpError; unsettled batches are in `pending` then."""
        self.pending.append(batch)
        while self.pending:
            self._send_once(self._next())

    def _next(self) -> Batch:
        """The first batch of `pending`, as large as a body may be now."""
        batch, size = self.pending[0], self._events_max
        if len(batch.items) > size:
            self.pending.popleft()
            self.pending.appendleft(Batch(batch.items[size:], batch.is_repeat))
            self.pending.appendleft(Batch(batch.items[:size], batch.is_repeat))
        return self.pending[0]

    def _send_once(self, batch: Batch) -> None:
        """Send a batch once, and put the batches to send after it into `pending`."""
        try:
            response = self._endpoint.post(b"\n".join(item.body for item in batch.items))
        except NotSentError as error:
            self._wait(None, str(error))
            return
        except NoResponseError as error:
            batch.is_repeat = True
            self._wait(None, str(error))
            return
        if response.status == 202:
            self._report.accepted += len(batch.items)
            self._report.repeated += len(batch.items) if batch.is_repeat else 0
            self._events_max = min(self._events_max + EVENTS_MIN, sys.maxsize)
            self._settle(batch, [])
        elif response.status in (400, 422):
            self._reject_some(batch, response)
        elif response.status == 413:
            self._split(batch, response)
        elif response.status == 429:
            self._events_max = max(EVENTS_MIN, min(len(batch.items), self._events_max) // 2)
            self._wait(response.retry_after_seconds, f"429 {response.message}", is_progress=True)
        elif response.status == 408 or response.status >= 500:
            self._keep_unconfirmed(batch, response)
            batch.is_repeat = batch.is_repeat or (response.status >= 500 and response.code != "unavailable")
            self._wait(response.retry_after_seconds, f"{response.status} {response.message}")
        else:
            raise GiveUpError(f"{self._endpoint.url} answers {response.status}: {response.message}")

    def _settle(self, batch: Batch, rest: list[Batch]) -> None:
        """Finish a batch; `rest` has the batches that replace it."""
        self._progress_at = self._clock.monotonic()
        self._failures = 0
        self.pending.popleft()
        self.pending.extendleft(reversed(rest))
        done = sum(item.input_bytes for item in batch.items)
        self._bar.update(done - sum(item.input_bytes for one in rest for item in one.items))
        self._bar.set_postfix(accepted=self._report.accepted, rejected=self._report.rejected, refresh=False)

    def _keep_unconfirmed(self, batch: Batch, response: Response) -> None:
        """If the answer says which events may not be stored, only these are sent again."""
        kept = response.unconfirmed(len(batch.items))
        if kept is not None and len(kept) < len(batch.items):
            stored = len(batch.items) - len(kept)
            self._report.accepted += stored
            self._report.repeated += stored if batch.is_repeat else 0
            self._settle(batch, [Batch([batch.items[index] for index in kept], is_repeat=True)])

    def _reject_some(self, batch: Batch, response: Response) -> None:
        """Remove the events that the answer names; if it names none, halve the batch until it has one event."""
        reasons = response.reasons(len(batch.items))
        if not reasons and len(batch.items) > 1:
            self._split(batch, response)
            return
        reasons = reasons or {0: response.message}
        for index, reason in reasons.items():
            self._report.reject(batch.items[index].place, reason)
        kept = [item for index, item in enumerate(batch.items) if index not in reasons]
        self._settle(batch, [Batch(kept, batch.is_repeat)] if kept else [])

    def _split(self, batch: Batch, response: Response) -> None:
        items = batch.items
        if len(items) == 1:
            self._report.reject(items[0].place, response.message)
            self._settle(batch, [])
            return
        half = len(items) // 2
        self._settle(batch, [Batch(items[:half], batch.is_repeat), Batch(items[half:], batch.is_repeat)])

    def _wait(self, retry_after_seconds: float | None, why: str, *, is_progress: bool = False) -> None:
        """Wait before the next attempt, as the server requests.

        Raises GiveUpError if patience ends before, unless the answer was progress.
        """
        backoff = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        self._failures += 1
        seconds = backoff if retry_after_seconds is None else retry_after_seconds
        if not is_progress and self._clock.monotonic() + seconds - self._progress_at > self._patience_seconds:
            raise GiveUpError(f"no event was accepted for {self._patience_seconds:g} s; the last answer was: {why}")
        self._clock.sleep(seconds)
        if is_progress:
            self._progress_at = self._clock.monotonic()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m ingest.client", description="Send events from NDJSON files.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="NDJSON, one event a line; - is standard input")
    parser.add_argument("--batch", type=int, default=200, metavar="N", help="events in each request (200)")
    parser.add_argument("--gzip", action="store_true", help="compress requests")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="give up after so long without progress (60)"
    )
    parsed = parser.parse_args(arguments)
    if not 1 <= parsed.batch <= 100_000:
        parser.error("--batch is a number from 1 to 100000")
    if not parsed.timeout > 0:
        parser.error("--timeout is a number of seconds above 0")
    return parsed


def _all_items(files: list[str], report: Report) -> Iterator[Item]:
    for name in files:
        if name == "-":
            yield from read_items("-", sys.stdin.buffer, report)
        else:
            with Path(name).open("rb") as stream:
                yield from read_items(name, stream, report)


def _total_bytes(files: list[str]) -> int | None:
    """Size of the input; None if it is not known in advance. Raises OSError for a file that can't be read."""
    total: int | None = 0
    for name in files:
        if name == "-":
            total = None
            continue
        path = Path(name)
        with path.open("rb"):
            total = total + path.stat().st_size if total is not None and path.is_file() else None
    return total


def run(arguments: argparse.Namespace, settings: Settings, clock: Clock) -> int:
    """Send everything and print the report; returns the exit code."""
    report = Report()
    try:
        total = _total_bytes(arguments.files)
        url = settings.ingest_url or f"http://{settings.ingest_host}:{settings.ingest_port}"
        endpoint = Endpoint(url, gzipped=arguments.gzip, timeout_seconds=min(arguments.timeout, 30.0))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"client: {error}\n")
        return 2
    code = 0
    with contextlib.closing(endpoint), tqdm(total=total, unit="B", unit_scale=True, disable=arguments.quiet) as bar:
        sender = Sender(endpoint, report, clock, patience_seconds=arguments.timeout, bar=bar)
        try:
            for batch in batches(_all_items(arguments.files, report), arguments.batch):
                sender.send(batch)
        except (GiveUpError, KeyboardInterrupt, OSError) as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            bar.write(f"client: {on_one_line(str(error)) or 'interrupted'}", file=sys.stderr)
    print("\n".join(map(on_one_line, report.lines())))
    if code:
        print("the rest of the input was not read")
    return code or (1 if report.rejected else 0)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parsed = parse_arguments(arguments)
    try:
        settings = Settings.for_commands()
    except SettingsError as error:
        sys.stderr.write(f"client: {error}\n")
        return 2
    return run(parsed, settings, SystemClock())
