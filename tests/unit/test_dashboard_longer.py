"""The charts of hours and days: what Prometheus is asked, and what becomes of its answer."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from http.client import BadStatusLine, HTTPException
from urllib.parse import parse_qs, urlsplit

import pytest

import pipeline.metrics
from ingest.dashboard.longer import (
    FAILED_SECONDS,
    READ_BYTES_MAX,
    SPANS,
    WITHOUT,
    LongCharts,
    fetch_answer,
    query_of,
    rows_of,
)
from ingest.dashboard.points import COLUMNS
from ingest.errors import NotReadyError
from pipeline.clock import ManualClock
from pipeline.errors import SettingsError
from pipeline.settings import Settings

SIX_HOURS = SPANS["6h"]
T = 1_764_200_040


def column(rows: list[list[object]], name: str) -> list[object]:
    return [row[COLUMNS.index(name)] for row in rows]


def answer_of(*series: tuple[dict[str, str], list[tuple[float, str]]]) -> bytes:
    found = [{"metric": labels, "values": values} for labels, values in series]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": found}}).encode()


def test_steps_become_rows_and_missing_values_stay_unknown() -> None:
    # Given a lag of two partitions, of which one has begun later, a gap of a step, and a value that is no number
    rows = rows_of(
        [
            ({"column": "lag"}, [(T, "5"), (T + 120, "7.25")]),
            ({"column": "lags", "partition": "10"}, [(T + 120, "4")]),
            ({"column": "lags", "partition": "2"}, [(T, "5"), (T + 120, "3")]),
            ({"column": "breaker"}, [(T, "0"), (T + 120, "1")]),
            ({"column": "paused"}, [(T, "1")]),
            ({"column": "drained"}, [(T, "NaN")]),
        ],
        SIX_HOURS,
    )
    # Then there is a row for each step, with partitions in their order
    assert column(rows, "t") == [T, T + 60, T + 120]
    assert column(rows, "lag") == [5.0, None, 7.2]
    assert column(rows, "lags") == [[5.0, None], None, [3.0, 4.0]]
    assert column(rows, "breaker") == ["closed", "unknown", "open"]
    assert column(rows, "paused") == [True, None, None]
    assert column(rows, "drained") == [None, None, None]
    assert rows_of([], SIX_HOURS) == []


@pytest.mark.parametrize("name", sorted(SPANS))
def test_each_series_has_a_column_of_the_charts(name: str) -> None:
    parts = query_of(SPANS[name]).split(" or label_replace(")
    named = {part.rsplit('"column", "', 1)[1].partition('"')[0] for part in parts}
    assert named < set(COLUMNS)
    assert named >= {"admitted", "offered", "lag", "lags", "rate", "drained", "s429"}
    assert "$" not in query_of(SPANS[name])
    assert SPANS[name].seconds / SPANS[name].step_seconds < 400


def test_the_metrics_of_the_query_exist() -> None:
    known = {one.name for one in vars(pipeline.metrics).values() if isinstance(one, pipeline.metrics.Declared)}
    bare = re.sub(r"__name__=~'([^']*)'", lambda found: found[1].replace("|", " "), query_of(SIX_HOURS))
    named = re.findall(r"\b(?:sluice|http|rate_limiter|circuit|redis_stream|kafka)_\w+", bare)
    assert len(set(named)) > 10
    assert {name.removesuffix("_total") for name in named} <= known


def test_many_pages_ask_prometheus_once_until_the_answer_is_old() -> None:
    clock, asked = ManualClock(), list[str]()

    async def fetch(url: str) -> bytes:
        asked.append(url)
        return answer_of(({"column": "lag"}, [(T, "5")]))

    async def ask() -> None:
        charts = LongCharts("http://prometheus.example:9090/", clock, fetch=fetch)
        made = await asyncio.gather(*(charts.document("6h") for _ in range(5)))
        assert len(set(made)) == 1
        document = json.loads(made[0])
        assert (document["columns"], document["seconds"], document["step"]) == (list(COLUMNS), 21600, 60)
        assert len(asked) == 1
        await charts.document("7d")
        clock.advance(SIX_HOURS.kept_seconds + 1)
        await charts.document("6h")
        charts.close()

    asyncio.run(ask())
    assert len(asked) == 3
    url = urlsplit(asked[0])
    words = {name: value[0] for name, value in parse_qs(url.query).items()}
    assert (url.netloc, url.path) == ("prometheus.example:9090", "/api/v1/query_range")
    assert words["query"] == query_of(SIX_HOURS)
    assert int(words["end"]) - int(words["start"]) == 21600


def test_without_an_answer_the_reason_is_shown_and_kept_for_a_short_time() -> None:
    answers: list[bytes | Exception] = [
        OSError("Connection refused"), b"<html>", b'{"status":"error"}', BadStatusLine("-ERR"), answer_of(),
    ]  # fmt: skip

    async def fetch(_url: str) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask() -> None:
        clock = ManualClock()
        charts = LongCharts("http://prometheus.example", clock, fetch=fetch)
        for left in (4, 3, 2, 1):
            for _ in range(2):  # a page that asks just after another one gets the same answer
                with pytest.raises(NotReadyError, match="PROMETHEUS_URL"):
                    await charts.document("6h")
                assert len(answers) == left
            clock.advance(FAILED_SECONDS)
        assert json.loads(await charts.document("6h"))["points"] == []
        with pytest.raises(KeyError):
            await charts.document("5y")
        with pytest.raises(NotReadyError, match=WITHOUT):
            await LongCharts("", ManualClock(), fetch=fetch).document("6h")
        charts.close()

    asyncio.run(ask())


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def fetched_from(serve: Serve) -> bytes:
    """What is fetched from a server with this behaviour."""

    async def fetch() -> bytes:
        served: list[asyncio.Task[None]] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.append(asyncio.ensure_future(serve(reader, writer)))
            try:
                await served[0]
            finally:
                writer.transport.abort()

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            try:
                return await fetch_answer(f"http://127.0.0.1:{port}/api/v1/query_range?query=up")
            finally:
                await asyncio.gather(*served, return_exceptions=True)
                await asyncio.sleep(0)  # the transports close

    return asyncio.run(fetch())


def answering(*parts: bytes, drips: bytes = b"") -> Serve:
    """A server that sends these parts, and then one byte again and again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /api/v1/query_range?query=up HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
            while drips and not writer.is_closing():
                writer.write(drips)
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()

    return serve


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (OK + b"Content-Length: 4\r\n\r\n", b"body"),
        (OK + b"\r\nbo", b"dy"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n", b"1\r\ny\r\n0\r\n\r\n"),
    ],
)
def test_an_answer_is_read_in_each_form(parts: tuple[bytes, ...]) -> None:
    assert fetched_from(answering(*parts)) == b"body"


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",), ValueError, "it answers 302"),
        ((b"HTTP/1.1 503 No\r\n\r\nlater",), ValueError, "it answers 503"),
        ((OK + b"\r\n", b"x" * (READ_BYTES_MAX + 1)), ValueError, "more than 4,194,304 bytes"),
        ((OK + b"Content-Length: 9\r\n\r\nbody",), HTTPException, "IncompleteRead"),
        ((b"-ERR unknown command\r\n",), HTTPException, "ERR"),
        ((), HTTPException, "closed"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(parts: tuple[bytes, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fetched_from(answering(*parts))


@pytest.mark.parametrize("head", [b"", OK, OK + b"X-A: ", OK + b"\r\n"])
def test_a_prometheus_that_sends_a_byte_now_and_then_is_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a time-out that no pause between two bytes reaches, and a server whose answer never ends
    monkeypatch.setattr("ingest.dashboard.longer.FETCH_SECONDS_MAX", 0.5)
    # Then the whole request has that time-out
    with pytest.raises(TimeoutError, match=r"has not answered in full within 0\.5 s"):
        fetched_from(answering(head, drips=b"x"))


@pytest.mark.parametrize("url", ["http://op:hunter22@prometheus.example", "op:hunter22@prometheus.example:9090"])
def test_a_password_in_the_address_of_prometheus_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="PROMETHEUS_URL") as refused:
        Settings(prometheus_url=url)
    assert "hunter22" not in str(refused.value)
