"""API keys over HTTP: every form and protocol, and two processes while keys come and go, and real servers fail."""

import base64
import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from checks.testbed.processes import ROOT, Program, beat, control_worker, http_status, ingest
from checks.testbed.waiting import BUSY_SECONDS, RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from checks.testbed.wire import Wire, get, post, request, send
from ingest.http.request import IngestHttp
from ingest.keys import KeyRing
from pipeline.errors import SinkUnavailableError
from pipeline.keys import ApiKey, digest_of, make_key
from pipeline.settings import Settings
from stack.config import environ_of
from stack.servers import Server, free_port
from support.calls import calls_of
from support.running_ingest import RunningIngest, client_environ, edge_settings, eventually, metric, sample
from support.servers import own_servers

BODY = json.dumps(sample()).encode()
SHOP, SHOP_ID = make_key()
LOKI, LOKI_ID = make_key()


def stored(key: str, key_id: str, name: str, *protocols: str) -> ApiKey:
    return ApiKey(key_id, name, digest_of(key), protocols, None, "test", "a test", 0.0)


KEYS = (stored(SHOP, SHOP_ID, "shop"), stored(LOKI, LOKI_ID, "collector", "loki"))
BEARER = {"Authorization": f"Bearer {SHOP}"}


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@contextlib.contextmanager
def edge_with_keys(**changes: Any) -> Iterator[RunningIngest]:
    """Ingest that needs keys, before it knows any: neither the mirror nor PostgreSQL has them."""
    running = RunningIngest(edge_settings(ingest_keys=True, **changes))
    running.stored_keys = _no_database
    running._thread.start()
    try:
        eventually(lambda: _answers(running.port), "it listens")
        yield running
    finally:
        running.stop()


def _no_database() -> tuple[ApiKey, ...]:
    raise SinkUnavailableError("PostgreSQL is away")


def _answers(port: int) -> bool:
    try:
        return get(port, "/healthz").status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with edge_with_keys(ingest_processes_max=1) as running:
        running.publish(1e6)
        running.keys.replace(KEYS, "one", instead_of=None)
        eventually(lambda: get(running.port, "/readyz").status == 200, "the keys are known")
        yield running


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_a_key_that_is_revoked_while_a_body_arrives_is_refused(*, chunked: bool) -> None:
    with edge_with_keys() as running:
        running.publish(1e6)
        running.keys.replace(KEYS, "one", instead_of=None)
        eventually(lambda: get(running.port, "/readyz").status == 200, "the keys are known")
        form = {"Transfer-Encoding": "chunked"} if chunked else {}
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
        with Wire(running.port) as wire:
            fields = BEARER | form | {"Expect": "100-continue"}
            wire.send(request(headers=fields, length=len(BODY)))
            assert wire.answer(has_body=False).status == 100  # the head was accepted
            running.keys.revoke([SHOP_ID])
            own = request(method="GET", path="/api/logs/throttle", content_type=None, headers=BEARER)
            eventually(lambda: send(running.port, own).status == 401, "the key is refused")
            # When the body comes only now
            wire.send(body)
            # Then it is refused as well
            assert wire.answer().status == 401
        assert all(position.begin == position.end for position in running.memory_log.positions())


@pytest.mark.parametrize(
    "fields",
    [
        {"Authorization": f"Bearer {SHOP}"},
        {"Authorization": f"ApiKey {SHOP}"},
        {"Authorization": f"ApiKey {coded('id:' + SHOP)}"},
        {"Authorization": f"Splunk {SHOP}"},
        {"Authorization": f"Basic {coded('anybody:' + SHOP)}"},
        {"X-Api-Key": SHOP},
        {"X-Api-Key": SHOP, "Authorization": "Basic proxy", "X-Scope-OrgID": "tenant"},
    ],
    # Without the key, which is another one in each process of pytest.
    ids=lambda fields: " ".join(f"{name} {value.split()[0] if ' ' in value else ''}" for name, value in fields.items()),
)
def test_each_header_form_is_accepted(edge: RunningIngest, fields: dict[str, str]) -> None:
    assert post(edge.port, BODY, headers=fields).status == 202


LOKI_PUSH = json.dumps({"streams": [{"stream": {"app": "a"}, "values": [["1795677435213000000", "m"]]}]}).encode()
PROTOCOLS: dict[str, tuple[str, bytes, Callable[[Any], Any]]] = {
    "/api/logs": ("application/json", BODY, lambda body: json.loads(body)["error"]["code"]),
    "/api/logs/lines": ("text/plain", b"line", lambda body: json.loads(body)["error"]["code"]),
    "/gelf": ("application/json", b'{"short_message": "m"}', lambda body: json.loads(body)["error"]["code"]),
    "/_bulk": ("application/x-ndjson", b'{"index":{}}\n{}\n', lambda body: json.loads(body)["error"]["type"]),
    "/services/collector": ("application/json", b'{"event": "m"}', lambda body: json.loads(body)["code"]),
    "/v1/logs": ("application/json", b'{"resourceLogs": []}', lambda body: json.loads(body)["code"]),
    "/loki/api/v1/push": ("application/json", LOKI_PUSH, lambda body: body.decode().strip()),
}
MISSING = {
    "/_bulk": "security_exception", "/services/collector": 2, "/v1/logs": 16,
    "/loki/api/v1/push": "this request needs an API key",
}  # fmt: skip
UNKNOWN = MISSING | {"/services/collector": 4, "/loki/api/v1/push": "the API key is not valid"}
WRONG_DOOR = {"/_bulk": "security_exception", "/services/collector": 1, "/v1/logs": 7}


@pytest.mark.parametrize("path", PROTOCOLS)
def test_each_protocol_refuses_in_its_own_form_and_accepts_a_key(edge: RunningIngest, path: str) -> None:
    content_type, body, said = PROTOCOLS[path]

    def send(key: str | None) -> Any:
        fields = {} if key is None else {"Authorization": f"Bearer {key}"}
        return post(edge.port, body, path=path, content_type=content_type, headers=fields)

    for key, words in ((None, MISSING), ("slc_wrong", UNKNOWN)):
        refused = send(key)
        assert (refused.status, said(refused.body)) == (401, words.get(path, "unauthorized"))
        assert refused.headers["www-authenticate"] == 'Bearer realm="sluice", Basic realm="sluice"'
        assert "retry-after" not in refused.headers
    other = send(LOKI)
    if path.startswith("/loki"):
        assert other.status == 204
    else:
        assert (other.status, said(other.body)) == (403, WRONG_DOOR.get(path, "forbidden"))
        assert send(SHOP).status in (200, 202)


def test_labels_are_no_proof(edge: RunningIngest) -> None:
    # A key where a tenant's or a user's name belongs is no key, nor is a name of an account
    for label in (SHOP, "shop", "key:shop"):
        for fields in ({"X-Scope-OrgID": label}, {"Authorization": f"Basic {coded(label + ':')}"}):
            for path in ("/api/logs", "/loki/api/v1/push"):
                content_type, body, _ = PROTOCOLS[path]
                assert post(edge.port, body, path=path, content_type=content_type, headers=fields).status == 401


def test_a_request_is_refused_before_its_body_and_without_a_request_object(
    edge: RunningIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    make = IngestHttp._make_request

    def noted(http: IngestHttp, head: bytes, *groups: bytes) -> None:
        made.append(groups[1])
        make(http, head, *groups)

    monkeypatch.setattr(IngestHttp, "_make_request", noted)
    with Wire(edge.port) as wire:
        # The answer comes before the body is sent
        wire.send(request(b"", length=len(BODY)))
        assert wire.answer().status == 401
        wire.send(BODY)
        made.clear()  # the first request of a connection may arrive before its task has started
        for _ in range(2):
            wire.send(request(BODY, headers={"Authorization": "Bearer wrong"}))
            assert wire.answer().status == 401
        for _ in range(2):  # nor with a key of other protocols
            wire.send(request(BODY, headers={"X-Api-Key": LOKI}))
            assert wire.answer().status == 403
        assert made == []
        # And the same connection goes on with a key, and is refused without one again
        wire.send(request(BODY, headers=BEARER))
        assert wire.answer().status == 202
        wire.send(request(BODY))
        assert wire.answer().status == 401
        wire.send(request(BODY, headers={"X-Api-Key": SHOP}))
        assert wire.answer().status == 202
    with Wire(edge.port) as wire:  # in another protocol, and with a query: on the normal path
        wire.send(request(b"", path="/api/logs?format=lines", content_type="text/plain", length=1000))
        assert wire.answer().status == 401


def test_a_refusal_for_want_of_a_key_costs_about_as_much_as_one_for_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an ingest process whose bucket is empty
    monkeypatch.setattr("ingest.admission.FILL_SECONDS_MAX", WAIT_SECONDS_MAX)
    monkeypatch.setattr("ingest.http.early_rejection.CLOSED_SECONDS_MAX", WAIT_SECONDS_MAX)
    with edge_with_keys(ingest_processes_max=1, rate_min=1, rate_max=1) as running:
        running.keys.replace(KEYS, "one", instead_of=None)
        many = json.dumps([sample()] * 1000).encode()
        eventually(lambda: post(running.port, many, headers=BEARER).status == 202, "a large body passes")
        assert post(running.port, BODY, headers=BEARER).status == 429
        # When clients repeat their requests, with a key and without one
        named = [{"X-Request-ID": f"r{number}"} for number in range(20)]
        with_key = [request(BODY, headers=fields | BEARER) for fields in named]
        without = [request(BODY, headers=fields) for fields in named]
        [of_429] = calls_of(running.port, 429, [with_key], monkeypatch)
        [of_401] = calls_of(running.port, 401, [without], monkeypatch)
    # Then a 401 takes no more calls of functions than a few (one by a handler takes some hundred)
    assert min(of_401) <= 2 * min(of_429)
    assert max(of_401[1:]) == min(of_401), "each of them"


def test_two_fields_of_one_name_are_read_by_the_normal_path(edge: RunningIngest) -> None:
    twice = {"Authorization": f"Bearer wrong\r\nAuthorization: Bearer {SHOP}"}
    assert post(edge.port, BODY, headers=twice).status == 401  # the first one counts


def test_refusals_are_counted_by_reason_and_no_key_is_shown(edge: RunningIngest) -> None:
    name = 'sluice_ingest_key_refusals_total{reason="%s"}'
    before = {reason: metric(edge.port, name % reason) for reason in ("missing", "unknown", "protocol")}
    post(edge.port, BODY)
    post(edge.port, b"line", path="/api/logs/lines", content_type="text/plain")
    post(edge.port, BODY, headers={"X-Api-Key": "wrong"})
    post(edge.port, BODY, headers={"X-Api-Key": LOKI})
    grown = {reason: metric(edge.port, name % reason) - before[reason] for reason in before}
    assert grown == {"missing": 2, "unknown": 1, "protocol": 1}
    assert metric(edge.port, "sluice_ingest_keys") == 2
    shown = b"".join(get(edge.port, path).body for path in ("/metrics", "/api/logs/health", "/openapi.json", "/"))
    for secret in (SHOP, LOKI, digest_of(SHOP)):
        assert secret.encode() not in shown


def test_the_account_is_that_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a limit for one key, and two connections from one address
    with edge_with_keys(ingest_processes_max=1, account_limits="key:shop=0.01") as edge:
        edge.publish(1e6)
        edge.keys.replace([*KEYS, stored("plain", "0000000a", "plain")], "one", instead_of=None)
        eventually(lambda: get(edge.port, "/readyz").status == 200, "the keys are known")
        with Wire(edge.port) as wire:
            statuses = []
            for key in (SHOP, SHOP, "plain", "plain", SHOP):
                wire.send(request(BODY, headers={"X-Api-Key": key}))
                statuses.append(wire.answer().status)
        assert statuses == [202, 429, 202, 202, 429]
        # Then its refusals are its own to see
        path = "/api/logs/throttle"
        assert get(edge.port, path).status == 401

        def seen(key: str) -> Any:
            return post(edge.port, b"", method="GET", path=path, content_type=None, headers={"X-Api-Key": key}).json

        eventually(lambda: seen(SHOP)["requests"] == 2, "they are reported")
        assert [one["account"] for one in seen(SHOP)["accounts"]] == ["key:shop"]
        other = seen("plain")
        assert (other["requests"], other["accounts"]) == (0, [])


def test_no_request_has_a_higher_level_than_its_key() -> None:
    # Given a bucket that is too empty for the level DEBUG, and a key for that level only
    low = replace(stored("low", "0000000c", "low"), level="debug")
    with edge_with_keys(
        ingest_processes_max=1, admission_levels=True, rate_min=1, rate_max=1, burst_seconds=60
    ) as edge:
        edge.publish(1)
        edge.keys.replace([*KEYS, low], "one", instead_of=None)
        eventually(lambda: get(edge.port, "/readyz").status == 200, "the keys are known")
        assert post(edge.port, [sample(severity="ERROR")] * 40, headers=BEARER).status == 202
        # Then neither a severity nor a Priority raises its requests, on the normal path and on the early one
        with Wire(edge.port) as wire:
            for headers in ({}, {}, {"Priority": "u=0"}, {"Priority": "u=0"}):
                wire.send(
                    request(json.dumps(sample(severity="FATAL")).encode(), headers={"X-Api-Key": "low"} | headers)
                )
                refused = wire.answer()
                assert (refused.status, refused.error["limitedBy"]) == (429, "level")
            # And a key without a level, on the same connection, is not concerned
            wire.send(request(json.dumps(sample(severity="FATAL")).encode(), headers={"X-Api-Key": SHOP}))
            assert wire.answer().status == 202
        name = 'sluice_ingest_level_events_total{level="%s",result="%s"}'
        assert metric(edge.port, name % ("debug", "refused")) == 4
        assert metric(edge.port, name % ("error", "accepted")) == 41


def test_the_client_of_a_checkout_sends_the_key_of_its_setting(edge: RunningIngest, tmp_path: Path) -> None:
    events = tmp_path / "events.ndjson"
    events.write_bytes(BODY + b"\n")

    def send(**variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "ingest.client", "--quiet", "--timeout", "20", str(events)], cwd=ROOT,
            env={**client_environ(f"http://127.0.0.1:{edge.port}"), **variables},
            capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False,
        )  # fmt: skip

    sent = send(INGEST_KEY=SHOP)
    assert (sent.returncode, "accepted 1" in sent.stdout) == (0, True), sent.stderr
    refused = send()
    assert refused.returncode == 1
    assert "401" in refused.stderr


def test_a_process_that_knows_no_keys_is_closed_and_asks_postgresql() -> None:
    with edge_with_keys() as edge:
        # Given an empty mirror, and a PostgreSQL without an answer at first
        for fields in (BEARER, {}):
            refused = post(edge.port, BODY, headers=fields)
            assert (refused.status, refused.error["code"]) == (503, "unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        assert get(edge.port, "/readyz").status == 503
        edge.control.is_unavailable = True
        edge.stored_keys = lambda: KEYS
        eventually(lambda: post(edge.port, BODY, headers=BEARER).status == 202, "it has read PostgreSQL")
        assert post(edge.port, BODY).status == 401


def test_a_revoked_key_is_refused_on_an_open_connection_and_a_flush_loses_none(edge: RunningIngest) -> None:
    edge.keys.replace([*KEYS, stored("short", "0000000b", "short")], "two", instead_of="one.0")
    with Wire(edge.port) as wire:

        def status() -> int:
            wire.send(request(BODY, headers={"X-Api-Key": "short"}))
            return wire.answer().status

        eventually(lambda: status() == 202, "the new key is known")
        edge.keys.revoke(["0000000b"])
        eventually(lambda: status() == 401, "it is revoked")
    edge.control.flush()
    try:
        edge.publish(1e6)
        eventually(
            lambda: (one := edge.service.follower.newest) is not None and one.state.keys_version is None, "it is read"
        )
        assert post(edge.port, BODY, headers=BEARER).status == 202
    finally:
        edge.keys.replace(KEYS, "one", instead_of=None)


def test_many_keys_are_prepared_outside_the_event_loop(edge: RunningIngest, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    prepare = KeyRing.by_digest

    def noted(ring: KeyRing, *arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return prepare(ring, *arguments)

    monkeypatch.setattr(KeyRing, "by_digest", noted)
    before = edge.keys.load()
    edge.keys.replace(KEYS, "three", instead_of=None if before is None else before.version)
    eventually(lambda: threads != [], "they are read")
    assert set(threads) == {"control-follower"}


# --- Two processes and real servers -----------------------------------------------------------------------------------


@dataclass
class Rig:
    """Two ingest processes and the control loop on servers of their own."""

    settings: Settings
    folder: Path
    control_redis: Server
    postgres: Server

    def keys(self, *words: str) -> str:
        """What `python -m tasks.keys` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "tasks.keys", *words], cwd=ROOT, capture_output=True, text=True,
            env={**environ_of(self.settings), "PATH": "/usr/bin:/bin"}, check=False, timeout=RUN_SECONDS_MAX,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self, key: str, port: int | None = None) -> int | None:
        """That of one request on a new connection, to either process."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port or self.settings.ingest_port, timeout=WAIT_SECONDS_MAX)
        ) as one:
            try:
                one.request(
                    "POST", "/api/logs", BODY, {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
                )
                return one.getresponse().status
            except OSError:
                return None


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("keys")
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(own_servers(folder))
        settings = servers.settings(
            ingest_port=free_port(), regulate_seconds=0.5, ingest_keys=True, rate_min=1e5, rate_max=1e5
        )
        programs = [ingest(settings, folder, f"ingest-{number}") for number in range(2)]
        for program in (*programs, control_worker(settings, folder), beat(settings, folder)):
            stack.callback(program.stop)
            program.start()
        ready = f"http://127.0.0.1:{settings.ingest_port}/readyz"
        wait_until(lambda: http_status(ready) == 200, "ingest knows that there are no keys")
        yield Rig(settings, folder, servers.control_redis, servers.postgres)


class Sender:
    """Sends with one key, each request on a connection of its own, so that both processes get some."""

    def __init__(self, rig: Rig, key: str) -> None:
        self.answers: list[tuple[float, int | None]] = []
        self._rig, self._key = rig, key
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.005):
            self.answers.append((time.monotonic(), self._rig.status(self._key)))

    def since(self, at: float) -> list[int | None]:
        return [status for when, status in self.answers if when >= at]


def test_keys_come_and_go_while_requests_flow_and_servers_fail(rig: Rig) -> None:
    # Given a key that was made by the command line
    key = rig.keys("create", "shop", "--why", "a test")
    other = rig.keys("create", "other")
    wait_until(lambda: rig.status(key) == 202, "the key is known")
    with Sender(rig, key) as sender, Sender(rig, other) as kept:
        wait_until(lambda: len(sender.since(0)) > 40, "requests flow")
        # When the control store is flushed, then no request is refused, and the mirror is filled again
        flushed_at = time.monotonic()
        with redis.Redis.from_url(rig.control_redis.url) as client:
            client.flushall()
            wait_until(lambda: client.hget("sluice:keys", "version") is not None, "it is filled")
        wait_until(lambda: len(sender.since(flushed_at)) > 20, "requests flow")
        assert set(sender.since(flushed_at)) == {202}
        # When PostgreSQL is away, then keys work, and one can be revoked
        rig.postgres.kill()
        try:
            rig.keys("revoke", "shop", "--why", "lost")
            revoked_at = time.monotonic()
            # (each of the two processes answers about half of them)
            wait_until(lambda: sender.since(revoked_at)[-40:] == [401] * 40, "both processes refuse it")
            refused_at = time.monotonic()
            wait_until(lambda: len(sender.since(refused_at)) > 20, "requests flow")
            assert set(sender.since(refused_at)) == {401}
            last_taken_at = max(when for when, status in sender.answers if status == 202)
            assert last_taken_at - revoked_at < 2 + BUSY_SECONDS
            assert kept.since(revoked_at)[-1] == 202
        finally:
            rig.postgres.start()
        # Then it is deleted there once it is back
        wait_until(lambda: "shop" not in rig.keys("list"), "it is deleted")
        assert set(kept.since(flushed_at)) <= {202}
    assert key not in "".join(path.read_text(errors="replace") for path in rig.folder.glob("*.log"))


@contextlib.contextmanager
def new_process_without_redis(rig: Rig, **changes: Any) -> Iterator[tuple[Program, int]]:
    """An ingest process that never reaches the control store, and its port."""
    port = free_port()
    settings = replace(rig.settings, redis_url="redis://127.0.0.1:1/0", ingest_port=port, **changes)
    program = ingest(settings, rig.folder, f"ingest-{port}").start()
    try:
        wait_until(lambda: http_status(f"http://127.0.0.1:{port}/healthz") == 200, "it is alive")
        yield program, port
    finally:
        program.stop()


def test_a_new_process_without_redis_reads_postgresql(rig: Rig) -> None:
    key = rig.keys("create", "third")
    with new_process_without_redis(rig) as (_, port):
        wait_until(lambda: rig.status("wrong", port) == 401, "it has read PostgreSQL")
        # A log on Redis does not take events before it has read its lowest offsets; but the key is no reason to
        # refuse them
        assert rig.status(key, port) in (202, 503)


def test_a_new_process_without_redis_and_postgresql_is_closed(rig: Rig) -> None:
    key = rig.keys("create", "fourth")
    with new_process_without_redis(rig, database_url="postgresql://127.0.0.1:1/none") as (program, port):
        wait_until(lambda: "no API keys are known" in program.log(), "it has asked")
        assert rig.status(key, port) == 503
        assert rig.status("wrong", port) == 503
        assert http_status(f"http://127.0.0.1:{port}/readyz") == 503
