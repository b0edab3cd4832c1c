"""What operators see: on a port of its own, and with a password (OPERATOR_PORT, OPERATOR_PASSWORD)."""

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from checks.testbed.wire import Response, Wire, get, request, send
from ingest.http.tls_listener import REFUSED_MAX
from ingest.openapi.document import openapi_document
from ingest.server import refuse_public, with_connections_that_fit
from pipeline.errors import SettingsError
from pipeline.keys import ApiKey, digest_of, make_key
from pipeline.settings import Settings
from stack.servers import free_port
from support.running_ingest import RunningIngest, edge_settings, eventually, running_ingest, sample

PASSWORD = "a long p:ss w\u00f6rd"
KEY, KEY_ID = make_key()
BODY = json.dumps(sample()).encode()
OPERATORS = ("/", "/events", "/metrics", "/docs", "/openapi.json", "/api/logs/health", "/api/logs/throttle",
             "/runbooks", "/runbooks/breaker-open", "/assets/x.0000000000000000.js")  # fmt: skip
PROBES = ("/healthz", "/readyz")
WRITERS = ("/api/logs", "/api/logs/lines", "/v1/logs", "/loki/api/v1/push", "/gelf", "/_bulk", "/services/collector")


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def head(port: int, path: str, **headers: str) -> Response:
    return send(port, request(method="HEAD", path=path, content_type=None, headers=headers), has_body=False)


def basic(password: str = PASSWORD, user: str = "prometheus") -> dict[str, str]:
    return {"Authorization": f"Basic {coded(f'{user}:{password}')}"}


@contextlib.contextmanager
def edge_with(*, keys: bool = False, **changes: Any) -> Iterator[RunningIngest]:
    edge = RunningIngest(edge_settings(ingest_keys=keys, **changes))
    edge.stored_keys = lambda: (ApiKey(KEY_ID, "shop", digest_of(KEY), (), None, "test", "a test", 0.0),)
    edge.start()
    try:
        yield edge
    finally:
        edge.stop()


# --- A port of its own --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[RunningIngest]:
    """Ingest with a port for operators."""
    with running_ingest(operator_port=free_port()) as edge:
        yield edge


def test_operators_look_on_their_port_and_clients_send_on_theirs(two: RunningIngest) -> None:
    assert two.operator_port != two.port
    for path in OPERATORS:
        status = 404 if path.startswith("/assets") else 200
        assert head(two.operator_port, path).status == status, path
        assert head(two.port, path).status == 404, path
    for path in WRITERS:
        assert send(two.operator_port, request(BODY, path=path)).status in (404, 405), path
    assert send(two.port, request(BODY)).status == 202
    for path in PROBES:
        assert (get(two.port, path).status, get(two.operator_port, path).status) == (200, 200), path
    # And the page has its files there
    page = get(two.operator_port, "/").body.decode()
    file = page.partition('src="')[2].partition('"')[0]
    assert get(two.operator_port, file).status == 200
    assert get(two.port, file).status == 404


def test_an_address_of_the_other_port_is_explained(two: RunningIngest) -> None:
    for port, path in ((two.port, "/metrics"), (two.operator_port, "/nothing")):
        error = get(port, path).error
        assert error["code"] == "not_found"
        assert "INGEST_PORT" in error["message"]


def test_a_shipper_of_elasticsearch_gets_its_version_where_it_sends(two: RunningIngest) -> None:
    headers = {"User-Agent": "Elastic-filebeat/8.15.0"}
    answer = send(two.port, request(method="GET", path="/", content_type=None, headers=headers))
    assert (answer.status, answer.json["name"]) == (200, "sluice")
    answer = send(two.operator_port, request(method="GET", path="/", content_type=None, headers=headers))
    assert answer.headers["content-type"].startswith("text/html")


def test_both_ports_are_one_process(two: RunningIngest) -> None:
    before = two.service.metrics.accepted.value
    assert send(two.port, request(BODY)).status == 202
    shown = [line for line in get(two.operator_port, "/metrics").body.decode().splitlines()
             if line.startswith("sluice_ingest_accepted_events_total ")]  # fmt: skip
    assert float(shown[0].rpartition(" ")[2]) == before + 1


def test_the_live_stream_is_on_the_operators_port_and_ends_with_the_process() -> None:
    with running_ingest(operator_port=free_port()) as edge, Wire(edge.operator_port) as wire:
        wire.send(request(method="GET", path="/events", content_type=None))
        assert wire.socket.recv(65536).startswith(b"HTTP/1.1 200 ")
        edge.stop()
        while wire.socket.recv(65536):
            pass


def test_operators_look_while_clients_have_taken_all_connections() -> None:
    with running_ingest(operator_port=free_port(), ingest_connections_max=2) as edge, contextlib.ExitStack() as held:
        for _ in range(2):
            wire = held.enter_context(Wire(edge.port))
            wire.send(request(BODY))
            assert wire.answer().status == 202
        assert send(edge.port, b"").status == 503
        assert get(edge.operator_port, "/api/logs/health").status == 200


def test_the_connections_of_operators_are_bounded_and_take_none_from_clients() -> None:
    with running_ingest(operator_port=free_port(), page_viewers_max=0) as edge, contextlib.ExitStack() as held:
        for _ in range(edge.settings.operator_connections_max):
            wire = held.enter_context(Wire(edge.operator_port))
            wire.send(request(method="GET", path="/healthz", content_type=None))
            assert wire.answer().status == 200
        assert send(edge.operator_port, b"").status == 503
        assert send(edge.port, request(BODY)).status == 202


def test_the_contract_names_the_port_for_events(two: RunningIngest) -> None:
    [events, here] = get(two.operator_port, "/openapi.json").json["servers"]
    assert events["url"] == f"http://{{host}}:{two.port}"
    assert here["url"] == "/"


def test_the_contract_is_valid_openapi_with_both_ports() -> None:
    OpenAPIV31SpecValidator(openapi_document(Settings(operator_port=8081))).validate()


def test_browsers_of_other_origins_do_not_read_the_operators_port() -> None:
    with running_ingest(operator_port=free_port(), ingest_cors_origins="*") as edge:
        for path in OPERATORS:
            assert (
                "access-control-allow-origin" not in head(edge.operator_port, path, Origin="https://a.example").headers
            )


# --- A password ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["its own port", "one port"])
def closed(request: pytest.FixtureRequest) -> Iterator[RunningIngest]:
    """Ingest whose operators need a password."""
    port = free_port() if request.param == "its own port" else 0
    with running_ingest(operator_port=port, operator_password=PASSWORD) as edge:
        yield edge


def test_operators_need_the_password_and_probes_and_clients_do_not(closed: RunningIngest) -> None:
    for path in OPERATORS:
        for headers in ({}, basic("another password"), basic(PASSWORD[:-1]), {"Authorization": PASSWORD},
                        {"Authorization": "Basic ???"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer \xff"},
                        {"X-Api-Key": PASSWORD}, {"Authorization": "Basic " + coded("no colon")}):  # fmt: skip
            answer = head(closed.operator_port, path, **headers)
            assert answer.status == 401, (path, headers)
            assert answer.headers["www-authenticate"] == 'Basic realm="sluice operators", charset="UTF-8"'
            assert int(answer.headers["content-length"]) < 200
        status = 404 if path.startswith("/assets") else 200
        for headers in (basic(), basic(user=""), basic(user="ann")):
            assert head(closed.operator_port, path, **headers).status == status, path
    for path in PROBES:
        assert get(closed.operator_port, path).status == 200
    assert send(closed.port, request(BODY)).status == 202


def test_other_spellings_of_an_address_need_the_password_too(closed: RunningIngest) -> None:
    for path in ("/metrics/", "//metrics", "/metrics?", "/metrics?x=/healthz", "/%6detrics", "/healthz/../metrics",
                 "/METRICS", "/api/logs/health/", "/./metrics", "/metrics;x", "/metrics%2f", "/?/healthz"):  # fmt: skip
        answer = get(closed.operator_port, path)
        assert answer.status in (401, 404), path
        assert b"sluice_" not in answer.body


def test_a_refusal_comes_before_the_body_and_leaves_the_connection(closed: RunningIngest) -> None:
    with Wire(closed.operator_port) as wire:
        for _ in range(2):
            wire.send(request(b"x" * 1000, method="GET", path="/metrics", headers={"Content-Length": "1000"}))
            assert wire.answer().error["message"] == "this address is for operators, and needs their password"
        # And not after all of a body that never comes
        wire.send(request(method="GET", path="/metrics", headers={"Content-Length": "1000"}))
        assert wire.answer().status == 401


def test_refusals_are_counted_by_reason_and_no_answer_has_the_password(closed: RunningIngest) -> None:
    def counted() -> dict[str, float]:
        lines = send(
            closed.operator_port, request(method="GET", path="/metrics", content_type=None, headers=basic())
        ).body.decode()
        assert PASSWORD not in lines
        return {
            line.partition('"')[2].partition('"')[0]: float(line.rpartition(" ")[2])
            for line in lines.splitlines()
            if line.startswith("sluice_ingest_operator_refusals_total{")
        }

    before = counted()
    assert set(before) == {"missing", "wrong"}
    head(closed.operator_port, "/metrics")
    head(closed.operator_port, "/metrics", **basic("another password"))
    assert counted() == {"missing": before["missing"] + 1, "wrong": before["wrong"] + 1}
    answer = get(closed.operator_port, "/metrics")
    assert PASSWORD.encode() not in answer.body
    contract = send(
        closed.operator_port, request(method="GET", path="/openapi.json", content_type=None, headers=basic())
    )
    assert PASSWORD not in contract.body.decode()


def test_bearer_works_too() -> None:
    with running_ingest(operator_password="abcdefghijkl") as edge:
        assert head(edge.port, "/metrics", Authorization="Bearer abcdefghijkl").status == 200
        assert head(edge.port, "/metrics", Authorization="bearer abcdefghijkm").status == 401


# --- With API keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_port", [True, False])
def test_a_key_shows_its_own_account_and_the_password_shows_all(has_port: bool) -> None:
    changes = {"operator_port": free_port() if has_port else 0, "operator_password": PASSWORD}
    with edge_with(keys=True, **changes) as edge:
        path, key = "/api/logs/throttle", {"X-Api-Key": KEY}
        own = send(edge.port, request(method="GET", path=path, content_type=None, headers=key))
        assert (own.status, own.json["requests"]) == (200, 0)
        assert head(edge.port, path).status == 401
        assert head(edge.operator_port, path, **basic()).status == 200
        if has_port:
            # A key is not the operators', and their password is no key
            assert head(edge.operator_port, path, **key).status == 401
            assert head(edge.port, path, **basic()).status == 401
        # Whatever the password opens, it does not send
        assert send(edge.port, request(BODY, headers=basic())).status == 401
        assert head(edge.operator_port, "/metrics", **key).status == 401
        assert head(edge.operator_port, "/metrics", Authorization=f"Bearer {KEY}").status == 401


# --- The start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "ops.example"])
def test_a_public_address_for_operators_needs_a_password_or_a_word(host: str) -> None:
    public: dict[str, Any] = {"operator_port": 8081, "operator_host": host}
    with pytest.raises(SettingsError, match=f"OPERATOR_HOST={host} .*set OPERATOR_PASSWORD .*OPERATOR_OPEN=yes"):
        refuse_public(Settings(**public))
    refuse_public(Settings(**public, operator_password=PASSWORD))
    refuse_public(Settings(**public, operator_open=True))
    # Also if what is public is the port that both share; a port of its own on the loopback address is enough
    shared: dict[str, Any] = {"ingest_host": host, "ingest_keys": True}
    with pytest.raises(SettingsError, match=f"INGEST_HOST={host} .*set OPERATOR_PORT .*OPERATOR_PASSWORD"):
        refuse_public(Settings(**shared))
    with pytest.raises(SettingsError, match=f"INGEST_HOST={host} "):
        refuse_public(Settings(ingest_host=host, ingest_open=True))  # who may send is not who may look
    refuse_public(Settings(**shared, operator_port=8081))
    refuse_public(Settings(**shared, operator_password=PASSWORD))
    refuse_public(Settings(**shared, operator_open=True))


def test_on_the_loopback_address_nothing_is_needed() -> None:
    refuse_public(Settings())
    refuse_public(Settings(operator_port=8081))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"operator_port": 8080}, "OPERATOR_PORT=8080 is INGEST_PORT too: set it to 0 if"),
        ({"operator_host": "0.0.0.0"}, "OPERATOR_HOST=0.0.0.0 needs OPERATOR_PORT"),
        ({"operator_password": "short"}, "OPERATOR_PASSWORD has fewer than 12 characters"),
    ],
)
def test_settings_that_contradict_each_other_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as raised:
        Settings(**changes)
    assert "short" not in str(raised.value)


def test_the_password_is_in_no_text_of_the_settings() -> None:
    assert PASSWORD not in repr(Settings(operator_password=PASSWORD))


def test_the_connections_of_operators_have_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    one = with_connections_that_fit(Settings(ingest_connections_max=5000)).ingest_connections_max
    both = with_connections_that_fit(Settings(ingest_connections_max=5000, operator_port=8081))
    assert both.ingest_connections_max == one - both.operator_connections_max
    # And with TLS, those above the limits, of each port
    for port, ports in ((0, 1), (8081, 2)):
        before = with_connections_that_fit(Settings(ingest_connections_max=5000, operator_port=port))
        secured = with_connections_that_fit(
            Settings(ingest_connections_max=5000, ingest_tls_cert="cert.pem", operator_port=port)
        )
        assert secured.ingest_connections_max == before.ingest_connections_max - ports * REFUSED_MAX


def test_operators_look_while_the_log_has_not_answered_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.server.READY_SECONDS_MAX", 60.0)  # that long the port for events waits for the log
    edge = RunningIngest(edge_settings(operator_port=free_port()))
    edge.log_server.stop()
    edge.begin()
    try:
        eventually(lambda: get(edge.operator_port, "/api/logs/health").json["status"] == "critical", "health is shown")
        assert get(edge.operator_port, "/readyz").status == 503
    finally:
        edge.stop()
