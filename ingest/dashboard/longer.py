"""The charts of 6 hours and 7 days: fixed queries to the Prometheus of PROMETHEUS_URL, whose answers are kept.

A browser names a span and nothing else, so that it can't put a query of its own through ingest.
"""

import asyncio
import http.client
import io
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from ingest.dashboard.points import COLUMNS
from ingest.errors import NotReadyError
from pipeline.clock import Clock
from pipeline.secrets import hide_secrets

ANSWER_SECONDS_MAX: Final = 5.0  # of Prometheus, for one of its own time-outs
FETCH_SECONDS_MAX: Final = ANSWER_SECONDS_MAX + 1.0  # of the whole request, from the name to the last byte
READ_BYTES_MAX: Final = 4 << 20  # 64 partitions for 7 days have less than 1 MB
FAILED_SECONDS: Final = (
    5.0  # for which a failure is the answer for all pages: they would wait for each other's time-outs
)
_CHUNK_BYTES: Final = 64 * 1024
WITHOUT: Final = "Charts of 6 hours and 7 days need a Prometheus: PROMETHEUS_URL is not set"


@dataclass(frozen=True, slots=True)
class Span:
    """A time that the charts show, in steps."""

    seconds: int
    step_seconds: int
    kept_seconds: float  # an answer serves all pages for this time


SPANS: Final[Mapping[str, Span]] = {"6h": Span(21_600, 60, 30.0), "7d": Span(604_800, 1_800, 300.0)}
_WINDOW_SECONDS_MIN: Final = 120  # two scrapes of PROMETHEUS_SECONDS=60


def _rate(selector: str) -> str:
    return f"sum(rate({selector}[$w]))"


# One expression for each column; $w is the window of a step. The worst of a step is shown where a mean would hide it.
_QUERIES: Final[Mapping[str, str]] = {
    "admitted": _rate("sluice_ingest_accepted_events_total"),
    "offered": f"{_rate('sluice_ingest_accepted_events_total')} + {_rate('sluice_ingest_refused_events_total')}",
    "s202": _rate('http_requests_total{status="202"}'),
    "s429": _rate('http_requests_total{status="429"}'),
    "s503": _rate('http_requests_total{status="503"}'),
    "s4xx": _rate('http_requests_total{status=~"4..",status!="429"}'),
    "s5xx": _rate('http_requests_total{status=~"5..",status!="503"}'),
    "rate": "max(avg_over_time(rate_limiter_rate_limit[$w]))",
    "tokens": "max(avg_over_time(rate_limiter_available_permissions[$w]))",
    "lag": "max(max_over_time(sluice_lag_events[$w]))",
    "lags": "max by (partition) (max_over_time({__name__=~'redis_stream_consumer_lag|kafka_consumer_lag'}[$w]))",
    "drained": 'sum(max by (result) (rate(sluice_drained_events_total{result="stored"}[$w])))',
    "breaker": 'max(max_over_time(circuit_breaker_state{state=~"open|half-open"}[$w]))',
    "paused": "max(max_over_time(sluice_consumption_paused[$w]))",
    "shadow": "max(avg_over_time(sluice_shadow_rate_limit[$w]))",
}
_COLUMN: Final = "column"


def query_of(span: Span) -> str:
    """All columns as one query: each of its series has the label `column`."""
    window = f"{max(span.step_seconds, _WINDOW_SECONDS_MIN)}s"
    parts = (
        f'label_replace({expression.replace("$w", window)}, "{_COLUMN}", "{column}", "", "")'
        for column, expression in _QUERIES.items()
    )
    return " or ".join(parts)


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]]  # seconds since the epoch, and a number as text


class _Data(msgspec.Struct):
    result: list[_Series]


class _Answer(msgspec.Struct):
    data: _Data


_decoder: Final = msgspec.json.Decoder(_Answer)


def rows_of(series: Iterable[tuple[Mapping[str, str], Iterable[tuple[float, str]]]], span: Span) -> list[list[Any]]:
    """Rows of COLUMNS, one a step, from the first step with a value to the last; values that are missing are None."""
    cells: dict[int, dict[str, float]] = {}
    for labels, values in series:
        column = labels.get(_COLUMN, "")
        name = f"lags/{labels.get('partition', '')}" if column == "lags" else column
        for at, text in values:
            value = float(text)
            if math.isfinite(value):
                cells.setdefault(round(at), {})[name] = value
    if not cells:
        return []
    partitions = sorted(
        {int(number) for cell in cells.values() for name in cell if (number := name.partition("/")[2]).isdecimal()}
    )
    return [_row(at, cells.get(at, {}), partitions) for at in range(min(cells), max(cells) + 1, span.step_seconds)]


def _row(at: int, cell: Mapping[str, float], partitions: Iterable[int]) -> list[Any]:
    lags = [cell.get(f"lags/{partition}") for partition in partitions]
    told: dict[str, Any] = {name: round(value, 1) for name, value in cell.items()}
    told |= {
        "t": at,
        "lags": None if all(lag is None for lag in lags) else lags,
        "breaker": "unknown" if "breaker" not in cell else "open" if cell["breaker"] else "closed",
        "paused": bool(cell["paused"]) if "paused" in cell else None,
    }
    return [told.get(column) for column in COLUMNS]


class LongCharts:
    """Asks Prometheus for the charts of a span. For the event loop only; a thread makes the rows of an answer."""

    def __init__(self, url: str, clock: Clock, *, fetch: Callable[[str], Awaitable[bytes]] | None = None) -> None:
        """`url` is that of Prometheus; empty: there is none."""
        self._url = url.rstrip("/")
        self._clock = clock
        self._fetch = fetch or fetch_answer
        self._kept: dict[str, tuple[float, bytes]] = {}  # monotonic time, and the document as JSON
        self._failed: tuple[float, str] | None = None  # monotonic time, and why
        self._asking = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prometheus")

    async def document(self, name: str) -> bytes:
        """The charts of a span as JSON. Raises KeyError if there is no such span, NotReadyError without an answer."""
        span = SPANS[name]
        if not self._url:
            raise NotReadyError(WITHOUT)
        async with self._asking:  # many pages ask once
            kept = self._kept.get(name)
            if kept is not None and self._clock.monotonic() - kept[0] < span.kept_seconds:
                return kept[1]
            if self._failed is not None and self._clock.monotonic() - self._failed[0] < FAILED_SECONDS:
                raise NotReadyError(self._failed[1])
            try:
                made = await self._ask(span)
            except NotReadyError as error:
                self._failed = (self._clock.monotonic(), str(error))
                raise
            self._kept[name] = (self._clock.monotonic(), made)
            return made

    def forget(self) -> None:
        """Keep no answer: the next page asks Prometheus."""
        self._kept.clear()
        self._failed = None

    def close(self) -> None:
        """End. A question that is running ends with the request of its page."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, span: Span) -> bytes:
        end = int(self._clock.now()) // span.step_seconds * span.step_seconds
        asked = {
            "query": query_of(span),
            "start": end - span.seconds,
            "end": end,
            "step": span.step_seconds,
            "timeout": f"{ANSWER_SECONDS_MAX:g}s",
        }
        try:
            answer = await self._fetch(f"{self._url}/api/v1/query_range?{urlencode(asked)}")
            return await asyncio.get_running_loop().run_in_executor(self._executor, _document, answer, span)
        except (OSError, ValueError, http.client.HTTPException) as error:  # those of msgspec are ValueErrors
            raise NotReadyError(f"Prometheus (PROMETHEUS_URL) has no charts: {hide_secrets(str(error))}") from error


def _document(answer: bytes, span: Span) -> bytes:
    """The document of a span from Prometheus' answer. Raises ValueError if that is something else."""
    series = _decoder.decode(answer).data.result
    rows = rows_of(((one.metric, one.values) for one in series), span)
    return msgspec.json.encode({"columns": COLUMNS, "seconds": span.seconds, "step": span.step_seconds, "points": rows})


class _Received:
    """What a socket has received, in the form that http.client reads."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._content)


async def fetch_answer(url: str) -> bytes:
    """The body of an answer. Raises OSError, HTTPException if it is no HTTP, ValueError if it is too large or no 200.

    The time-out is for all of it (TimeoutError): with one for each read, a server that sends a byte now and then would
    hold a page's request for hours. It uses no proxy of the environment, which is for other networks than this one, and
    follows no redirect: PROMETHEUS_URL names the server that is asked, and no answer may name another.
    """
    try:
        async with asyncio.timeout(FETCH_SECONDS_MAX):
            received = await _exchange(url)
    except TimeoutError:
        raise TimeoutError(f"it has not answered in full within {FETCH_SECONDS_MAX:g} s") from None
    answer = http.client.HTTPResponse(_Received(received), method="GET")  # type: ignore[arg-type]
    answer.begin()
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"it answers {answer.status}")
    return answer.read()


async def _exchange(url: str) -> bytes:
    """All bytes of an answer. Raises OSError, ValueError if they are too many."""
    asked = urlsplit(url)
    is_tls = asked.scheme == "https"
    port = asked.port or (443 if is_tls else 80)
    head = (
        f"GET {asked.path}?{asked.query} HTTP/1.1\r\nHost: {asked.netloc}\r\nAccept: application/json\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(asked.hostname, port, ssl=True if is_tls else None)
    try:
        writer.write(head.encode("ascii"))
        received = bytearray()
        while chunk := await reader.read(_CHUNK_BYTES):
            received += chunk
            if len(received) > READ_BYTES_MAX:
                raise ValueError(f"its answer has more than {READ_BYTES_MAX:,} bytes")
    finally:
        writer.transport.abort()
    return bytes(received)
