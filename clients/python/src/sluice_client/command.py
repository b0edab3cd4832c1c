"""`sluice send FILE…`: send events from NDJSON files, and report the results.

Every event without an eventId gets one (UUIDv7), and keeps it in every repeat. So a repeat after an unknown outcome
stores nothing twice. The command sends one batch at a time, in the order of the input. The batch bounds the memory,
whatever the size of the files. It does not need the queue of the core: a file can wait.

Exit code: 0 if every event was accepted, 1 if one was not, 2 if nothing could be sent, 130 after Ctrl-C.
"""

import argparse
import contextlib
import json
import os
import ssl
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Final, Protocol

from sluice_client.clock import Clock, SystemClock
from sluice_client.delivery import BATCH_BYTES_MAX, Batch, Cause, Delivery, Pause
from sluice_client.ids import uuid7
from sluice_client.wire import Endpoint, NoResponseError, NotSentError

LINE_BYTES_MAX: Final = 4 << 20  # of the input; a longer line can't be an event
REASONS_MAX: Final = 20  # rejections that are listed one by one
REASON_KINDS_MAX: Final = 100  # kinds of rejections that are counted separately
DEFAULT_URL: Final = "http://127.0.0.1:8080"


class GiveUpError(Exception):
    """It is useless to continue; the message has the reason."""


@dataclass(slots=True, eq=False)
class Item:
    """One event of the input: its line as it is sent, and its place in the input."""

    line: bytes
    place: str  # file:line
    input_bytes: int


class Bar(Protocol):
    """A progress bar, as tqdm has it."""

    def update(self, n: float) -> object:
        """So many bytes more are done."""

    def set_postfix(self, *, refresh: bool, accepted: int, rejected: int) -> object:
        """Show these counts."""


class _NoBar:
    def update(self, n: float) -> None:
        pass

    def set_postfix(self, *, refresh: bool, accepted: int, rejected: int) -> None:
        pass


@dataclass
class Report:
    """The results of the events."""

    read: int = 0  # events of the input so far
    count: int = 0  # accepted
    repeated: int = 0  # accepted events that were sent again because the first outcome was unknown
    refused: int = 0  # rejected
    reasons: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    bar: Bar = field(default_factory=_NoBar)

    def accepted(self, items: Sequence[Item], *, is_repeat: bool) -> None:
        """Record events that are durable."""
        self.count += len(items)
        self.repeated += len(items) if is_repeat else 0
        self._show(sum(item.input_bytes for item in items))

    def rejected(self, item: Item, reason: str) -> None:
        """Record an event that the server has permanently rejected."""
        self.reject(item.place, reason)
        self._show(item.input_bytes)

    def _show(self, input_bytes: int) -> None:
        self.bar.update(input_bytes)
        self.bar.set_postfix(accepted=self.count, rejected=self.refused, refresh=False)

    def reject(self, place: str, reason: str) -> None:
        """Record an event that the server, or a check of the line, has permanently rejected."""
        self.refused += 1
        if len(self.reasons) < REASONS_MAX:
            self.reasons.append(f"{place}: {reason}")
        kind = reason if reason in self.kinds or len(self.kinds) < REASON_KINDS_MAX else "other reasons"
        self.kinds[kind] += 1

    @property
    def settled(self) -> int:
        """Events that are accepted or rejected."""
        return self.count + self.refused

    @property
    def given_up(self) -> int:
        """Events that were read, but are neither accepted nor rejected."""
        return self.read - self.settled

    def lines(self) -> Iterator[str]:
        """The lines of the printed report."""
        yield f"accepted {self.count}"
        yield f"repeated {self.repeated}"
        yield f"rejected {self.refused}"
        for kind, count in self.kinds.most_common():
            yield f"  {count} x {kind}"
        for reason in self.reasons:
            yield f"  {reason}"
        if self.refused > len(self.reasons):
            yield f"  ... and {self.refused - len(self.reasons)} more"
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


def with_event_id(line: bytes) -> bytes:
    """A line with an eventId; everything else stays unchanged. Raises ValueError if it is no JSON object."""
    try:
        event = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is no JSON object: {error}") from None
    if not isinstance(event, dict):
        raise ValueError("the line is no JSON object")  # noqa: TRY004  # the line has the wrong value
    if event.get("eventId") is not None:
        return line
    # At the end: of two fields with one name the last one wins, and the first may be null.
    comma = b"," if event else b""
    return line[:-1].rstrip() + b'%b"eventId":"%b"}' % (comma, uuid7().encode())


def batches(items: Iterator[Item], events_max: int) -> Iterator[Batch[Item]]:
    """Collect events into batches of bounded count and size."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == events_max or size + len(item.line) > BATCH_BYTES_MAX):
            yield Batch(batch)
            batch, size = [], 0
        batch.append(item)
        size += len(item.line) + 1
    if batch:
        yield Batch(batch)


class Sender:
    """Sends batches until each event is accepted or rejected, or `patience_seconds` pass without progress.

    A 429 counts as progress: the server works, and events of other clients get through.
    """

    def __init__(self, endpoint: Endpoint, report: Report, clock: Clock, *, patience_seconds: float) -> None:
        self._endpoint = endpoint
        self._report = report
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._progress_at = clock.monotonic()
        self._delivery: Delivery[Item] = Delivery(report)

    def send(self, batch: Batch[Item]) -> None:
        """Send one batch. Raises GiveUpError."""
        self._delivery.add(batch)
        self._progress_at = self._clock.monotonic()  # the input may have paused before this batch
        while self._delivery.pending:
            settled = self._report.settled
            pause = self._send_once(self._delivery.next())
            if pause is None or self._report.settled > settled:
                self._progress_at = self._clock.monotonic()
            if pause is not None:
                self._wait(pause)

    def _send_once(self, batch: Batch[Item]) -> Pause | None:
        """Send a batch once. Raises GiveUpError for a certificate that is not trusted: no repeat changes that."""
        try:
            response = self._endpoint.post(batch.body)
        except (NotSentError, NoResponseError) as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise GiveUpError(f"{error}; SSL_CERT_FILE names a file with another CA") from error
            return self._delivery.failed(error)
        return self._delivery.answered(response)

    def _wait(self, pause: Pause) -> None:
        """Wait before the next attempt, as the server requests.

        Raises GiveUpError if patience ends before, unless the answer was progress.
        """
        if pause.cause is Cause.MISDIRECTED:
            raise GiveUpError(f"{self._endpoint.url} answers {pause.why}")
        is_progress = pause.cause is Cause.LIMITED
        if not is_progress and self._clock.monotonic() + pause.seconds - self._progress_at > self._patience_seconds:
            raise GiveUpError(
                f"no event was accepted for {self._patience_seconds:g} s; the last answer was: {pause.why}"
            )
        self._clock.sleep(pause.seconds)
        if is_progress:
            self._progress_at = self._clock.monotonic()


def add_send_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `send`, without the address."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="NDJSON, one event a line; - is standard input")
    parser.add_argument("--batch", type=_batch, default=200, metavar="N", help="events in each request (200)")
    parser.add_argument("--gzip", action="store_true", help="compress requests")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="give up after so long without progress (60)"
    )


def _batch(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 100_000:
        raise argparse.ArgumentTypeError("must be a number from 1 to 100000")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise argparse.ArgumentTypeError("must be a number of seconds above 0")


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


@contextlib.contextmanager
def progress(total: int | None, *, is_quiet: bool) -> Iterator[Bar]:
    """A progress bar on standard error, if that is a terminal and tqdm is installed. Elsewhere the report is enough."""
    try:
        from tqdm import tqdm  # noqa: PLC0415  # an optional package
    except ImportError:
        is_quiet = True
    if is_quiet:
        yield _NoBar()
        return
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:  # None: unless it is a terminal
        yield bar


def send(
    arguments: argparse.Namespace, url: str, clock: Clock | None = None, *, headers: Mapping[str, str] | None = None
) -> int:
    """Send everything to the ingest at `url` and print the report; returns the exit code."""
    report = Report()
    clock = clock or SystemClock()
    try:
        total = _total_bytes(arguments.files)
        endpoint = Endpoint(
            url, gzipped=arguments.gzip, timeout_seconds=min(arguments.timeout, 30.0), headers=headers
        )  # fmt: skip
    except (OSError, ValueError) as error:
        sys.stderr.write(f"client: {error}\n")
        return 2
    code, said = 0, ""
    with contextlib.closing(endpoint), progress(total, is_quiet=arguments.quiet) as report.bar:
        sender = Sender(endpoint, report, clock, patience_seconds=arguments.timeout)
        try:
            for batch in batches(_all_items(arguments.files, report), arguments.batch):
                sender.send(batch)
        except (GiveUpError, KeyboardInterrupt, OSError) as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            said = f"client: {on_one_line(str(error)) or 'interrupted'}\n"
    sys.stderr.write(said)
    print("\n".join(map(on_one_line, report.lines())))
    if code:
        print("the rest of the input was not read")
    return code or (1 if report.refused else 0)


def on_one_line(text: str) -> str:
    """The text of a server or a file, safe for a terminal: with escapes for all that can't be printed."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def main(arguments: Sequence[str] | None = None, *, environ: Mapping[str, str] = os.environ) -> int:
    """`sluice`: returns the exit code."""
    parser = argparse.ArgumentParser(prog="sluice", description="Send events to Sluice.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser(
        "send", help="send events from NDJSON files", description="Send events from NDJSON files."
    )
    add_send_arguments(one)
    url = environ.get("SLUICE_URL", DEFAULT_URL)
    one.add_argument("--url", default=url, help=f"address of ingest; default: SLUICE_URL, or else {DEFAULT_URL}")
    key = environ.get("SLUICE_API_KEY")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    parsed = parser.parse_args(arguments)
    return send(parsed, parsed.url, headers=headers)


def run() -> int:
    """The script `sluice`: returns the exit code.

    Sluice's own package has a script of this name too, with `send` and more commands. Where both packages are
    installed, only one of the two files is left, and both start the same.
    """
    for command in entry_points(group="sluice.command"):
        return int(command.load()())
    return main()
