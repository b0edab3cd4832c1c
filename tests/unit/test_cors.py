"""Requests of pages of other origins (INGEST_CORS_ORIGINS): each answer to events, and nothing else, names them."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from checks.testbed.wire import Response, Wire, request, send
from pipeline.errors import SettingsError
from pipeline.keys import ApiKey, digest_of, make_key
from pipeline.settings import Settings, origins_of
from support.running_ingest import RunningIngest, edge_settings, eventually, running_ingest, sample

SHOP, OTHER = "https://shop.example", "https://other.example"
KEY, KEY_ID = make_key()
BODY = json.dumps(sample()).encode()
OPERATORS = ("/", "/metrics", "/events", "/docs", "/openapi.json", "/api/logs/health", "/healthz", "/readyz",
             "/api/logs/throttle")  # fmt: skip
EXPOSED = {"retry-after", "ratelimit", "ratelimit-policy", "x-request-id"}
# The addresses for events, with a body that gets 202 or what its protocol has instead.
DOORS = [
    ("/api/logs", "application/json", BODY),
    ("/api/logs?format=lines", "text/plain", b"a line\n"),
    ("/api/logs?format=lines&x=1", "text/plain", b"a line\n"),  # this one takes the path through Sanic's router
    ("/api/logs/lines", "text/plain", b"a line\n"),
    ("/loki/api/v1/push", "application/json", b'{"streams": []}'),
    ("/v1/logs", "application/json", b'{"resourceLogs": []}'),
    ("/gelf", "application/json", b'{"version": "1.1", "host": "h", "short_message": "m"}'),
    ("/_bulk", "application/x-ndjson", b'{"create": {}}\n{"message": "m"}\n'),
    ("/an-index/_bulk", "application/x-ndjson", b'{"create": {}}\n{"message": "m"}\n'),
    ("/services/collector/event", "application/json", b'{"event": "e"}'),
]  # fmt: skip


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest(ingest_cors_origins=f"{SHOP}, http://localhost:3000") as found:
        yield found


def preflight(port: int, path: str, origin: str | None = SHOP, *, method: str = "POST", **more: str) -> Response:
    headers = {"Access-Control-Request-Method": method, **({} if origin is None else {"Origin": origin}), **more}
    return send(port, request(method="OPTIONS", path=path, content_type=None, headers=headers), has_body=False)


def names_in(text: str) -> set[str]:
    return {one.strip().lower() for one in text.split(",")}


def assert_is_readable(answer: Response, origin: str = SHOP) -> None:
    assert answer.headers["access-control-allow-origin"] == origin
    assert names_in(answer.headers["access-control-expose-headers"]) == EXPOSED
    assert "origin" in names_in(answer.headers["vary"])
    assert "access-control-allow-credentials" not in answer.headers


def assert_is_not_readable(answer: Response) -> None:
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("path", "media_type", "body"), DOORS)
def test_a_page_of_a_named_origin_sends_and_reads_at_every_address_for_events(
    edge: RunningIngest, path: str, media_type: str, body: bytes
) -> None:
    asked = preflight(edge.port, path, **{"Access-Control-Request-Headers": "authorization,content-type,x-own"})
    assert asked.status == 204
    assert asked.headers["access-control-allow-origin"] == SHOP
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type,x-own"
    assert asked.headers["access-control-max-age"] == "7200"
    assert names_in(asked.headers["vary"]) == {
        "origin", "access-control-request-method", "access-control-request-headers",
    }  # fmt: skip
    answer = send(edge.port, request(body, path=path, content_type=media_type, headers={"Origin": SHOP}))
    assert answer.status in (200, 202, 204), answer.body
    assert_is_readable(answer)
    # And a page of another origin does not
    assert_is_not_readable(preflight(edge.port, path, OTHER))
    answer = send(edge.port, request(body, path=path, content_type=media_type, headers={"Origin": OTHER}))
    assert_is_not_readable(answer)
    assert answer.headers["vary"] == "origin"


def test_a_client_that_is_no_browser_gets_what_it_got(edge: RunningIngest) -> None:
    answer = send(edge.port, request(BODY))
    assert answer.status == 202
    assert_is_not_readable(answer)
    # And Docker's question for Splunk's collector too, which is no preflight
    asked = send(
        edge.port, request(method="OPTIONS", path="/services/collector/event/1.0", content_type=None), has_body=False
    )
    assert (asked.status, asked.headers["allow"]) == (200, "POST, OPTIONS")


def test_header_names_that_are_none_are_not_repeated(edge: RunningIngest) -> None:
    for asked in ("a b", "a,,b", "\u00e9", "a:b", '"a"'):
        answer = preflight(edge.port, "/api/logs", **{"Access-Control-Request-Headers": asked})
        assert answer.status == 204
        assert "access-control-allow-headers" not in answer.headers


@pytest.mark.parametrize("origins", [SHOP, "*"])
def test_what_operators_read_is_for_no_other_origin(origins: str) -> None:
    headers = {"Origin": SHOP}
    with running_ingest(ingest_cors_origins=origins) as edge:
        for path in OPERATORS:
            assert preflight(edge.port, path, method="GET").status == 405, path
            with Wire(edge.port) as wire:
                # Also after a request for events on the same connection
                wire.send(request(BODY, headers=headers))
                assert wire.answer().headers["access-control-allow-origin"] == origins
                wire.send(request(method="HEAD", path=path, content_type=None, headers=headers))
                answer = wire.answer(has_body=False)
                assert answer.status == 200, path
                assert_is_not_readable(answer)


def test_without_the_setting_nothing_is_said() -> None:
    with running_ingest() as edge:
        assert preflight(edge.port, "/api/logs").status == 405
        answer = send(edge.port, request(BODY, headers={"Origin": SHOP}))
        assert answer.status == 202
        assert_is_not_readable(answer)
        assert "vary" not in answer.headers


def test_all_origins_get_one_answer_that_caches_may_share() -> None:
    with running_ingest(ingest_cors_origins="*") as edge:
        for headers in ({"Origin": SHOP}, {"Origin": "null"}, {}):
            answer = send(edge.port, request(BODY, headers=headers))
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "vary" not in answer.headers
        asked = preflight(edge.port, "/api/logs", "null", **{"Access-Control-Request-Headers": "authorization"})
        # `*` does not stand for Authorization there (Fetch, 3.3.5)
        assert asked.headers["access-control-allow-headers"] == "authorization"


@pytest.mark.parametrize("path", ["/api/logs", "/api/logs?x=1"])  # refused early, and by the router's handler
def test_a_429_is_readable_with_its_wait(path: str) -> None:
    with running_ingest(ingest_cors_origins=SHOP, rate_min=1, rate_max=1) as edge, Wire(edge.port) as wire:

        def post(origin: str) -> Response:
            wire.send(request(BODY, path=path, headers={"Origin": origin}))
            return wire.answer()

        eventually(lambda: post(SHOP).status == 429, "the rate is used up")
        for _ in range(5):
            answer = post(SHOP)
            if answer.status == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert_is_readable(answer)
            assert_is_not_readable(post(OTHER))
        # And the preflight is answered meanwhile
        assert preflight(edge.port, path).status == 204


@contextlib.contextmanager
def edge_with_a_key(**changes: Any) -> Iterator[RunningIngest]:
    edge = RunningIngest(edge_settings(ingest_keys=True, ingest_cors_origins=SHOP, **changes))
    edge.stored_keys = lambda: (ApiKey(KEY_ID, "shop", digest_of(KEY), (), None, "test", "a test", 0.0),)
    edge.start()
    try:
        yield edge
    finally:
        edge.stop()


def test_a_401_is_readable_and_the_preflight_needs_no_key() -> None:
    with edge_with_a_key() as edge, Wire(edge.port) as wire:
        for _ in range(2):  # the second one is refused early, on a connection that has sent no key
            wire.send(request(BODY, headers={"Origin": SHOP}))
            answer = wire.answer()
            assert answer.status == 401
            assert_is_readable(answer)
            wire.send(request(BODY, headers={"Origin": OTHER}))
            assert_is_not_readable(wire.answer())
        assert preflight(edge.port, "/api/logs").status == 204
        answer = send(edge.port, request(BODY, headers={"Origin": SHOP, "X-Api-Key": KEY}))
        assert answer.status == 202
        assert_is_readable(answer)


def test_408_413_and_503_are_readable_and_a_preflight_does_not_wait_for_a_body() -> None:
    changes: dict[str, Any] = {"request_seconds_max": 0.5, "body_bytes_max": 2000, "protocol_body_bytes_max": 2000}
    with running_ingest(ingest_cors_origins=SHOP, **changes) as edge:
        headers = {"Origin": SHOP}
        asked = {**headers, "Access-Control-Request-Method": "POST", "Content-Length": "9"}
        assert (
            send(edge.port, request(method="OPTIONS", content_type=None, headers=asked), has_body=False).status == 204
        )
        for status, data in (
            (413, request(b"x" * 5000, headers=headers)),
            (413, request(b"x" * 5000, path="/v1/logs", headers=headers)),
            (408, request(b"x", length=10, headers=headers)),
            (408, request(b"x", length=10, path="/api/logs?x=1", headers=headers)),
        ):
            answer = send(edge.port, data)
            assert answer.status == status
            assert_is_readable(answer)
        edge.log_server.stop()
        eventually(lambda: send(edge.port, request(BODY, headers=headers)).status == 503, "the log does not answer")
        with Wire(edge.port) as wire:
            for _ in range(3):
                wire.send(request(BODY, headers=headers))
                answer = wire.answer()
                assert answer.status == 503
                assert_is_readable(answer)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", set()),
        ("*", {"*"}),
        ("https://Shop.Example, http://localhost:3000,", {"https://shop.example", "http://localhost:3000"}),
        ("https://a.example:443,http://b.example:80,http://c.example:443", {
            "https://a.example", "http://b.example", "http://c.example:443",
        }),
        ("http://[::1]:8080", {"http://[::1]:8080"}),
        ("capacitor://localhost", {"capacitor://localhost"}),
    ],
)  # fmt: skip
def test_origins_are_read_as_browsers_send_them(text: str, origins: set[str]) -> None:
    assert origins_of(text) == origins
    assert Settings(ingest_cors_origins=text).ingest_cors_origins == text


@pytest.mark.parametrize(
    "text", ["shop.example", "https://shop.example/", "https://*.example", "null", "https://a.example b", "*, https://a",
             "https://a.example:port", "https://u@a.example", "https://\u00fc.example"]
)  # fmt: skip
def test_what_is_no_origin_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match="INGEST_CORS_ORIGINS: "):
        Settings(ingest_cors_origins=text)
