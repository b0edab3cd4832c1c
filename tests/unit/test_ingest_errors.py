"""The one table of errors."""

import inspect
import json

import pytest
from sanic import exceptions as sanic_errors

import pipeline.errors
from ingest.errors import (
    BodyTooLargeError,
    InvalidEventsError,
    MalformedBodyError,
    NotReadyError,
    Problem,
    RateLimitedError,
    error_response,
    row_of,
    whole_seconds,
)
from ingest.http.response import response_to
from pipeline.errors import (
    AppendBufferFullError,
    LogFullError,
    LogIndeterminateError,
    LogUnavailableError,
    StoreUnavailableError,
)
from pipeline.names import LimitedBy


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MalformedBodyError("x"), 400, "malformed"),
        (InvalidEventsError("x", []), 422, "invalid"),
        (BodyTooLargeError(5, "bytes"), 413, "too_large"),
        (RateLimitedError(0.5, quota=10, left=0), 429, "rate_limited"),
        (LogUnavailableError(), 503, "unavailable"),
        (LogFullError(), 503, "unavailable"),
        (AppendBufferFullError(), 503, "unavailable"),
        (StoreUnavailableError(), 503, "unavailable"),
        (NotReadyError(), 503, "unavailable"),
        (LogIndeterminateError(), 503, "indeterminate"),
        (sanic_errors.RequestTimeout("x"), 408, "timeout"),
        (sanic_errors.NotFound("x"), 404, "not_found"),
        (sanic_errors.BadURL("x"), 400, "bad_request"),
        (sanic_errors.InvalidHeader("x"), 400, "bad_request"),
        (sanic_errors.ServiceUnavailable("x"), 503, "indeterminate"),
    ],
)
def test_rows(error: Exception, status: int, code: str) -> None:
    found = response_to(error)
    assert found.status == status
    assert found.body is not None
    assert json.loads(found.body)["error"]["code"] == code
    assert ("retry-after" in found.headers) == (status in (429, 503))


def test_every_error_of_the_pipeline_that_the_edge_can_meet_has_a_row() -> None:
    for _, kind in inspect.getmembers(pipeline.errors, inspect.isclass):
        if issubclass(kind, pipeline.errors.RecoverableError | pipeline.errors.OverloadedError):
            assert row_of(kind()).status in (429, 503), kind


def test_a_defect_is_a_500_that_tells_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    found = response_to(ZeroDivisionError("secret"))
    assert found.status == 500
    assert b"secret" not in (found.body or b"")
    assert "a request failed because of a defect" in caplog.text


def test_details() -> None:
    problems = [Problem(n, "a", "b") for n in range(30)]
    found = json.loads(response_to(InvalidEventsError("x", problems)).body or b"")["error"]
    assert found["errors"] == [{"index": n, "field": "a", "reason": "b"} for n in range(20)]
    found = json.loads(response_to(MalformedBodyError("x", byte=3, line=2)).body or b"")["error"]
    assert (found["byte"], found["line"]) == (3, 2)


@pytest.mark.parametrize(
    ("seconds", "draw", "expected"),
    [(0.0, 0.0, 1), (0.0, 0.999, 1), (0.02, 0.0, 1), (0.02, 0.999, 2), (5.0, 0.0, 5), (5.0, 0.999, 10), (5.1, 0.0, 6)],
)
def test_retry_after_is_whole_never_too_short_and_spread(seconds: float, draw: float, expected: int) -> None:
    assert whole_seconds(seconds, draw=draw) == expected


def test_retry_after_is_limited_for_clients_that_would_drop_events() -> None:
    assert [whole_seconds(seconds, draw=0.5, seconds_max=5.0) for seconds in (0.2, 2.0, 40.0)] == [1, 3, 5]
    assert whole_seconds(40.0, draw=0.5, seconds_max=0.5) == 1
    refused = error_response(RateLimitedError(40.0, quota=1000, left=0), retry_seconds_max=5.0)
    assert (refused.headers["retry-after"], refused.headers["ratelimit"]) == ("5", '"events";r=0;t=5')


def test_a_429_says_what_limits_and_since_when() -> None:
    error = RateLimitedError(1.0, quota=100, left=0, limited_by=LimitedBy.BREAKER, since=1_700_000_000.7)
    details = json.loads(response_to(error).body or b"")["error"]
    assert (details["limitedBy"], details["limit"], details["since"]) == ("breaker", 100, "2023-11-14T22:13:20Z")


@pytest.mark.parametrize(
    ("rate", "limit", "policy"),
    [
        (1234.5, "1234", "q=1234;w=1"),
        (33.333333, "33", "q=33;w=1"),
        (2.5, "2.5", "q=2;w=1"),
        (1.0, "1", "q=1;w=1"),
        (0.2, "0.2", "q=1;w=5"),
        (1 / 3, "0.333", "q=1;w=3"),
        (0.0, "0", "q=0;w=1"),
    ],
)
def test_a_limit_is_shown_as_it_is(rate: float, limit: str, policy: str) -> None:
    refused = response_to(RateLimitedError(5.0, quota=rate, left=0, limited_by=LimitedBy.SHARE))
    assert f'"limit":{limit},'.encode() in (refused.body or b"")
    assert refused.headers["ratelimit-policy"] == f'"events";{policy}'


def test_rate_limit_headers() -> None:
    headers = response_to(RateLimitedError(0.0, quota=1000, left=7)).headers
    assert headers["ratelimit-policy"] == '"events";q=1000;w=1'
    assert headers["ratelimit"] == f'"events";r=7;t={headers["retry-after"]}'
