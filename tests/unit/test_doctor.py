"""`sluice doctor`: each line of it, when all is well and when it is not; and that it ends, whatever a check does."""

import http.client
import io
import json
import logging
import re
import resource
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipeline import wiring
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.rights import Role
from pipeline.errors import (
    LogMisconfiguredError,
    LogUnavailableError,
    SettingsError,
    SinkMisconfiguredError,
    SinkUnavailableError,
    StoreUnavailableError,
)
from pipeline.flow.clocks import Look
from pipeline.late_begin import LateBegin, accepted_data
from pipeline.names import ControlEventKind
from pipeline.ports.control import ControlEvent
from pipeline.ports.log import LogIdentity, MissingReplicas, PartitionPosition, SetUpFault
from pipeline.settings import Settings
from pipeline.sink.server_check import LENT_BACKENDS, DatabaseFacts
from pipeline.sink.sessions import SessionLimits
from sluice import doctor, examinations
from sluice.__main__ import main
from sluice.examinations import DISK_FREE_SHARE_MIN, OF_SERVERS, OF_SHELL, PYTHONS, disk_finding
from sluice.findings import Check, Finding, Scene, State, document, examine, is_well

ROOT = Path(__file__).parents[2]
CHECKS = {check.name: check for check in (*OF_SHELL, *OF_SERVERS)}


def look(name: str, settings: Settings | None = None, **environ: str) -> list[Finding]:
    """The lines of one check."""
    scene = Scene(settings or Settings(), environ, SystemClock())
    return examine([CHECKS[name]], scene, seconds_max=60)


def only(found: list[Finding]) -> Finding:
    [finding] = found
    return finding


def is_fine(found: list[Finding], what: str) -> bool:
    return only(found).state is State.OK and what in only(found).what


# --- Each line ----------------------------------------------------------------------------------------------------


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_fine(look("packages"), "have the tested versions")
    with monkeypatch.context() as patched:
        patched.setattr(
            examinations, "version_of", lambda name: "5.0" if name == "redis" else examinations.pinned()[name]
        )
        found = only(look("packages"))
        assert found.state is State.WRONG
        assert re.fullmatch(r"redis 5\.0 \(tested: [\d.]+\)", found.what)
        assert "./run.sh" in found.do
    monkeypatch.setattr(examinations, "PYTHONS", ((3, 8), (3, 9)))
    assert look("packages")[0].what.startswith("Python 3.")
    assert look("packages")[0].do.startswith("use Python 3.11")


def test_the_library_that_appends_to_kafka_is_examined_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    version_of = examinations.version_of
    monkeypatch.setattr(examinations, "version_of", lambda name: "1.0" if "confluent" in name else version_of(name))
    assert look("packages")[0].state is State.OK
    (found,) = look("packages", Settings(event_log_url="kafka://localhost", kafka_client="confluent"))
    assert re.fullmatch(r"confluent-kafka 1\.0 \(tested: [\d.]+\)", found.what)


def test_the_tested_versions_come_from_the_package_where_there_is_no_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(examinations, "CODE", tmp_path)
    monkeypatch.setattr(
        examinations.importlib.metadata,  # type: ignore[attr-defined]
        "requires",
        lambda _: ["celery==5.7.0", 'supervisor==4.3.0; extra == "servers"'],
    )
    assert examinations.pinned() == {"celery": "5.7.0"}
    assert examinations.pinned("servers") == {"supervisor": "4.3.0"}


def test_a_missing_package_is_named() -> None:
    assert examinations.version_of("no-such-package") == "is missing"


def test_the_tested_pythons_are_those_of_set_up() -> None:
    assert PYTHONS == ((3, 11), (3, 13))
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "stack" / "setup.sh").read_text()
    assert PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]


def test_proxies() -> None:
    assert is_fine(look("proxies"), "no proxy is used for 127.0.0.1")
    assert is_fine(look("proxies", HTTP_PROXY="http://p:3128", NO_PROXY="a.example, 127.0.0.1"), "no proxy")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        found = only(look("proxies", None, **{name: "http://p:3128", "NO_PROXY": "a.example"}))
        assert found.state is State.WRONG
        assert "http://p:3128 for 127.0.0.1" in found.what
        assert found.do == "export NO_PROXY=a.example,127.0.0.1"
    # And the one for another scheme does not matter
    assert is_fine(look("proxies", HTTPS_PROXY="http://p:3128"), "no proxy")
    elsewhere = Settings(ingest_url="https://logs.example:8443")
    assert "for logs.example" in only(look("proxies", elsewhere, HTTPS_PROXY="http://p:3128")).what


@pytest.mark.parametrize(
    "used", ["user:hunter2@proxy:3128", "http://user:hunter2@proxy:3128", "user@x:h/@hunter2@proxy:3128"]
)
def test_a_proxy_is_shown_without_its_login(used: str) -> None:
    found = only(look("proxies", None, http_proxy=used))
    assert "would ask the proxy proxy:3128 for 127.0.0.1" in found.what
    assert re.search("user|hunter2", f"{found.line} {document([found])}") is None


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert is_fine(look("open files"), "enough for 2,000 connections")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    found = only(look("open files"))  # what ingest logs at its start
    assert (found.state, found.do) == (State.WRONG, "")
    assert "needs 2200 open files and this process may have 256" in found.what
    assert "ulimit -n" in found.what


def test_disks(tmp_path: Path) -> None:
    home = {"SLUICE_HOME": str(tmp_path / "none")}
    assert is_fine(look("disk", None, **home), "no path of this machine is watched")
    [watched, archive] = look("disk", Settings(watched_paths=str(tmp_path), event_sink_url="file:///no/such"), **home)
    assert str(tmp_path) in watched.what
    assert "GiB free" in watched.what
    assert (archive.state, archive.what) == (State.WRONG, "/no/such: No such file or directory")
    assert "EVENT_SINK_URL" in archive.do
    # And the folder of the system on this machine
    assert str(tmp_path) in only(look("disk", SLUICE_HOME=str(tmp_path))).what


def test_a_disk_is_nearly_full_where_its_alert_fires() -> None:
    assert disk_finding("/x", 100 << 30, 1000 << 30) == Finding("disk", State.OK, "/x: 100.0 GiB free, 10 %")
    found = disk_finding("/x", 99 << 30, 1000 << 30)
    assert (found.state, found.what) == (State.WRONG, "/x: 99.0 GiB free, 10 %")
    assert "RETENTION_DAYS" in found.do
    rules = yaml.safe_load((ROOT / "monitoring" / "rules" / "alerts.yml").read_text())
    [rule] = [rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == "DiskNearFull"]
    assert rule["expr"].endswith(f"< {DISK_FREE_SHARE_MIN}")


def test_programs(tmp_path: Path) -> None:
    assert list(examinations.programs_findings({"ingest-0": "RUNNING", "beat": "RUNNING"}, tmp_path)) == [
        Finding("programs", State.OK, "2 run")
    ]
    [found] = examinations.programs_findings({"ingest-0": "RUNNING", "beat": "BACKOFF"}, tmp_path)
    assert (found.state, found.what) == (State.WRONG, "beat is BACKOFF")
    assert found.do == f"look at {tmp_path}/beat.log"


def test_access(tmp_path: Path) -> None:
    assert is_fine(look("access"), "HTTP, at 127.0.0.1")
    assert is_fine(look("access", Settings(ingest_keys=True)), "clients need a key")
    found = only(look("access", Settings(ingest_host="0.0.0.0")))
    assert found.state is State.WRONG
    assert "set INGEST_KEYS=yes" in found.what
    found = only(look("access", Settings(ingest_tls_cert=str(tmp_path / "none.pem"))))
    assert found.state is State.WRONG
    assert "none.pem" in found.what


def test_the_error_of_a_server_is_said_once() -> None:
    def fail(_: Scene) -> Iterable[Finding]:
        raise SinkUnavailableError("no connection to PostgreSQL: refused")

    checks = [Check("PostgreSQL", fail, "start it"), Check("schema", fail), Check("clocks", lambda _: [])]
    first, second = examine(checks, Scene(Settings(), {}, SystemClock()), seconds_max=60)
    assert first.what == "no connection to PostgreSQL: refused"
    assert (second.state, second.what) == (State.UNKNOWN, "not checked: see PostgreSQL")


def test_stored() -> None:
    def found(stored: dict[int, int], *positions: PartitionPosition) -> Finding:
        return examinations.stored_finding(Settings(), "a.2", positions, stored, events)

    events: list[ControlEvent] = []
    assert is_fine([found({0: 5}, PartitionPosition(0, 5, 5, 5), PartitionPosition(1, 0, 0, None))], "all of the event")
    assert is_fine([found({0: 4}, PartitionPosition(0, 4, 5, 4))], "all of the event log but 1 event")
    # And records that the log has lost before they were stored are named
    lost = found({0: 3}, PartitionPosition(0, 5, 9, 3))
    assert (lost.state, lost.what) == (State.WRONG, "the event log no longer has the next 2 records to store")
    assert lost.do == "celery -A tasks.app inspect gap 0"
    # And a database that has nothing of what the log says was stored is probably the wrong one
    wrong = found({}, PartitionPosition(0, 5, 5, 5), PartitionPosition(1, 2, 2, 2))
    assert wrong.state is State.WRONG
    assert "does not have the 7 records of this event log that drains stored before" in wrong.what
    assert wrong.do.startswith("DATABASE_URL: if it is wrong, set it back")
    # Unless an operator has accepted that
    late = {0: LateBegin("a.2", 5, 5), 1: LateBegin("a.2", 2, 2)}
    data = accepted_data(Settings(), "a.2", late)
    events = [ControlEvent("1", 0.0, ControlEventKind.LATE_BEGIN_ACCEPTED, "ann@host", "a new server", data)]
    assert is_fine([found({}, PartitionPosition(0, 5, 5, 5), PartitionPosition(1, 2, 2, 2))], "all of the event log")
    # For another loss than this one
    assert found({}, PartitionPosition(0, 6, 6, 6)).state is State.WRONG


def test_signed_messages(tmp_path: Path) -> None:
    file = str(tmp_path / "none.pem")
    found = only(look("signing", Settings(signing_key_file=file, signing_cert_file=file, signing_cert_folder=file)))
    assert found.state is State.WRONG
    assert "can't be signed" in found.what or "can't be read" in found.what


def redis_says(monkeypatch: pytest.MonkeyPatch, **info: object) -> None:
    class Connection:
        def __init__(self, _settings: Settings, _name: str = "redis_url") -> None:
            pass

        def call(self, *_: str) -> dict[str, object]:
            return {"redis_version": "8.0.1", "maxmemory": 0, **info}

    monkeypatch.setattr(examinations, "ControlConnection", Connection)
    monkeypatch.setattr(examinations, "refuse_cluster", lambda _: None)


def test_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    redis_says(monkeypatch)
    assert is_fine(look("Redis"), "Redis 8.0.1")
    redis_says(monkeypatch, redis_version="6.2.14")
    assert only(look("Redis")) == Finding("Redis", State.WRONG, "Redis 6.2.14 is too old", "use Redis 7 or newer")
    redis_says(monkeypatch, maxmemory=1000, maxmemory_policy="allkeys-lru")
    assert "evicts queues and control state" in only(look("Redis")).what
    redis_says(monkeypatch, maxmemory=1000, maxmemory_policy="noeviction")
    assert is_fine(look("Redis"), "Redis 8.0.1")


def test_a_redis_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    redis_says(monkeypatch)

    def refuse(_: Settings) -> None:
        raise SettingsError("REDIS_URL is a Redis Cluster")

    monkeypatch.setattr(examinations, "refuse_cluster", refuse)
    assert only(look("Redis")) == Finding("Redis", State.WRONG, "REDIS_URL is a Redis Cluster")


def test_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*names: str) -> Callable[[Settings, Role], tuple[list[str], list[str]]]:
        return lambda _, role: ([f"the user x lacks rights of the role {role}"] if role in names else [], [])

    monkeypatch.setattr(examinations, "check_rights", lacking())
    assert is_fine(look("rights"), "in Redis, those of ingest, worker, operator")
    monkeypatch.setattr(examinations, "check_rights", lacking("worker", "operator"))
    assert is_fine(look("rights"), "those of ingest")
    monkeypatch.setattr(examinations, "check_rights", lacking(*Role))
    assert only(look("rights")).state is State.WRONG
    assert "lacks rights" in only(look("rights")).what
    monkeypatch.setattr(examinations, "check_rights", lambda *_: ([], ["the rights are not checked"]))
    assert only(look("rights")).state is State.UNKNOWN


def log_says(monkeypatch: pytest.MonkeyPatch, answer: LogIdentity | Exception, warning: str = "") -> None:
    def identity() -> LogIdentity:
        if warning:
            logging.getLogger("pipeline.log").warning(warning)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(wiring, "make_log", lambda _: SimpleNamespace(identity=identity, close=lambda: None))


def test_the_event_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log_says(monkeypatch, LogIdentity("x.4", "1", 4))
    assert is_fine(look("event log"), "Redis Streams, 4 partitions, one copy of each event")
    fault = SetUpFault("The topic x deletes events", "`kafka-configs.sh`", loses_events=True)
    log_says(monkeypatch, LogIdentity("x.4", "1", 4, faults=(fault,)))
    assert only(look("event log")) == Finding("event log", State.WRONG, fault.what, fault.remedy)
    missing = MissingReplicas("A replica is missing", "Kafka's brokers", refuses_events=False)
    log_says(monkeypatch, LogIdentity("x.4", "1", 4, missing_replicas=missing))
    assert only(look("event log")).do == "look at Kafka's brokers"
    log_says(monkeypatch, LogMisconfiguredError("the event log's Redis evicts keys: set noeviction"))
    assert only(look("event log")) == Finding(
        "event log", State.WRONG, "the event log's Redis evicts keys: set noeviction"
    )
    log_says(monkeypatch, LogUnavailableError("the event log (Redis) can't be reached: refused"))
    assert only(look("event log")).do.startswith("start the server of EVENT_LOG_URL")
    # And what a start only logs is wrong too
    log_says(monkeypatch, LogIdentity("x.4", "1", 4), warning="it keeps no append-only file")
    assert only(look("event log")) == Finding("event log", State.WRONG, "it keeps no append-only file")


def postgresql_says(monkeypatch: pytest.MonkeyPatch, answer: DatabaseFacts | Exception) -> None:
    class FakeSession:
        def __init__(self, _: Settings) -> None:
            pass

        def check(self) -> DatabaseFacts:
            if isinstance(answer, Exception):
                raise answer
            return answer

        def close(self) -> None:
            pass

    monkeypatch.setattr(examinations, "Session", FakeSession)


def facts(*, has_fsync: bool = True) -> DatabaseFacts:
    return DatabaseFacts(1, 150_018, "UTF8", False, has_fsync, True, "events", "sluice")


def test_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    postgresql_says(monkeypatch, facts())
    assert is_fine(look("PostgreSQL"), "PostgreSQL 15.18, database events as sluice")
    postgresql_says(monkeypatch, facts(has_fsync=False))
    assert "fsync=off" in only(look("PostgreSQL")).what
    assert "fsync=on" in only(look("PostgreSQL")).do
    postgresql_says(monkeypatch, SinkMisconfiguredError(f"this PostgreSQL can't be used: {LENT_BACKENDS}"))
    found = only(look("PostgreSQL"))
    assert found.state is State.WRONG
    assert "pooler" in found.what
    # And what to do is in the runbook: the server runs, and its address is right
    assert found.do == "what docs/runbooks/database-refused.md says for this text"
    postgresql_says(monkeypatch, SinkUnavailableError("no connection"))
    assert only(look("PostgreSQL")).do.startswith("start the server of DATABASE_URL")


@pytest.mark.parametrize(
    ("connections", "state", "what"),
    [
        (16, State.OK, "PostgreSQL allows 13 (max_connections 16 less 3 reserved), and this system uses up to 11"),
        (13, State.WRONG, "10 sessions"),  # enough for all processes, and not for a migration beside them
        (9, State.WRONG, "6 sessions"),
    ],
)
def test_sessions(monkeypatch: pytest.MonkeyPatch, connections: int, state: State, what: str) -> None:
    limits = SessionLimits(1, connections, 3, 0, False, False, -1, -1, "sluice", "events")
    monkeypatch.setattr(examinations, "read_limits", lambda _: limits)
    found = only(look("sessions", Settings(log_partitions=4)))
    assert found.state is state
    assert what in found.what
    # And what is wrong says what to set
    assert state is State.OK or "max_connections=14 in PostgreSQL" in found.what


def test_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: list[str] = []
    monkeypatch.setattr(wiring, "make_schema", lambda _: SimpleNamespace(missing=lambda: missing))
    assert is_fine(look("schema"), "nothing is missing")
    missing.append("0014_nullable_stored_at.sql")
    assert only(look("schema")).what == "the database lacks 0014_nullable_stored_at.sql"
    assert only(look("schema")).do.startswith("sluice migrate")


def test_clocks() -> None:
    def found(store_ahead: float, database_ahead: float | None) -> list[Finding]:
        database = None if database_ahead is None else Look(1000.0 + store_ahead + database_ahead, 50.0, 50.0)
        store = Look(1000.0 + store_ahead, 1000.0, 1000.0)
        return list(examinations.clock_findings(store, database, Look(1000.0 + store_ahead, 50.0, 50.0), 1.0))

    assert is_fine(found(0.5, -0.5), "this machine, Redis and PostgreSQL differ by at most 1 s")
    assert is_fine(found(0.5, None), "this machine and Redis differ")
    assert only(found(30.0, 0.0)).what == "this machine's clock is 30.0 s behind that of Redis"
    assert only(found(0.0, 30.0)).what == "PostgreSQL's clock is 30.0 s ahead of that of Redis"
    assert "NTP" in only(found(0.0, 30.0)).do


def test_without_postgresql_the_other_clocks_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: str) -> Any:
        raise SinkUnavailableError("no connection to PostgreSQL: refused")

    offsets = SimpleNamespace(stored_offsets_and_time=away)
    state = SimpleNamespace(time=SystemClock().now() + 1000.0)
    monkeypatch.setattr(wiring, "make_storage", lambda _: SimpleNamespace(offsets=offsets, close=lambda: None))
    monkeypatch.setattr(wiring, "make_control_store", lambda *_, **__: SimpleNamespace(state=lambda: state))
    unknown, wrong = look("clocks")
    assert (unknown.state, wrong.state) == (State.UNKNOWN, State.WRONG)
    assert wrong.what.endswith("s behind that of Redis")


def test_clocks_are_unknown_if_the_control_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> Any:
        raise StoreUnavailableError("the control store (Redis) does not answer: refused")

    monkeypatch.setattr(wiring, "make_control_store", away)
    assert only(look("clocks")).state is State.UNKNOWN


def test_ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9"
    answers: list[Exception] = []

    def open_(*_: object, **__: object) -> Any:
        if answers:
            raise answers[0]
        return io.BytesIO()

    monkeypatch.setattr(examinations, "_OPENER", SimpleNamespace(open=open_))
    assert is_fine(look("ingest", Settings(ingest_url=url)), f"{url} takes events")
    answers.append(urllib.error.HTTPError(url, 503, "", None, None))  # type: ignore[arg-type]
    assert only(look("ingest", Settings(ingest_url=url))).what == f"{url} answers 503: it takes no events"
    answers[0] = urllib.error.URLError(ConnectionRefusedError(111, "refused"))
    assert "does not answer" in only(look("ingest", Settings(ingest_url=url))).what
    answers[0] = http.client.BadStatusLine("SSH-2.0")  # another program listens there
    assert only(look("ingest", Settings(ingest_url=url))).what == f"{url} does not answer: SSH-2.0"


def test_where_clients_need_a_certificate_ingest_is_asked_at_the_port_for_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def open_(url: str, **_: object) -> Any:
        asked.append(url)
        return io.BytesIO()

    monkeypatch.setattr(examinations, "_OPENER", SimpleNamespace(open=open_))
    secured = Settings(
        ingest_url="https://logs.example:8443", ingest_tls_cert="c.pem", ingest_tls_client="required",
        ingest_tls_client_ca="ca.pem", operator_host="::", operator_port=8081, operator_password="p" * 12,
    )  # fmt: skip
    assert is_fine(look("ingest", secured), "https://logs.example:8443 takes events")
    assert is_fine(look("ingest", replace(secured, ingest_tls_client="optional")), "takes events")
    assert asked == ["https://[::1]:8081/readyz", "https://logs.example:8443/readyz"]


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "logs.example:8443", "ann:hunter2@logs.example", "http://x:y"])
def test_an_ingest_url_that_is_none_is_named_as_such(url: str) -> None:
    for name in ("proxies", "ingest"):
        found = only(look(name, Settings(ingest_url=url), https_proxy="http://p:3128"))
        assert found.state is State.WRONG
        assert found.what.startswith(("INGEST_URL does not begin with http:// or https://", "INGEST_URL has a port"))
        assert found.do == "correct INGEST_URL"


# --- The whole ----------------------------------------------------------------------------------------------------


FINE = Check("b", lambda _: [Finding("b", State.OK, "fine")])


def scene() -> Scene:
    return Scene(Settings(), {}, ManualClock())


def test_a_check_that_does_not_end_is_left_alone() -> None:
    # Given two checks that never end, one of them of a server, and one that ends at once
    for_ever = threading.Event()

    def hang(_: Scene) -> Iterable[Finding]:
        for_ever.wait()
        return ()

    fine = Finding("quick", State.OK, "fine")
    checks = [Check("server", hang, "start it"), Check("other", hang), Check("quick", lambda _: [fine])]
    try:
        found = examine(checks, scene(), seconds_max=0.2)
    finally:
        for_ever.set()
    # Then each has its line, in order; the quick one may have had no processor in that time
    assert found[0] == Finding("server", State.WRONG, "no answer within 0.2 s", "start it")
    assert (found[1].name, found[1].state) == ("other", State.UNKNOWN)
    assert found[2].name == "quick"


def test_a_check_of_what_is_not_used_has_no_line() -> None:
    assert look("signing") == []
    assert look("ingest") == []
    assert look("programs", SLUICE_HOME="/no/system/here") == []


def test_a_defect_of_a_check_leaves_the_others() -> None:
    def broken(_: Scene) -> Iterable[Finding]:
        raise KeyError("x")

    found = examine(
        [Check("a", broken), Check("b", lambda _: [Finding("b", State.OK, "fine")])], scene(), seconds_max=60
    )
    assert [one.state for one in found] == [State.UNKNOWN, State.OK]
    assert "KeyError" in found[0].what


def test_warnings_are_those_of_the_check_that_logged_them() -> None:
    def logs(_: Scene) -> Iterable[Finding]:
        logging.getLogger("x").warning("only of a")
        return [Finding("a", State.OK, "fine")]

    found = examine([Check("a", logs), FINE], scene(), seconds_max=60)
    assert found == [Finding("a", State.WRONG, "only of a"), Finding("b", State.OK, "fine")]


def test_a_line_is_one_line_without_passwords() -> None:
    found = Finding("Redis", State.WRONG, "no answer of\nredis://u:secret@h:1/0", "start it")
    assert found.line == "wrong   Redis         no answer of\\nredis://u:***@h:1/0; do: start it"
    assert "secret" not in json.dumps(document([found]))
    assert not is_well([found])


def test_settings_that_are_wrong_come_first_and_no_server_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Settings, "for_commands", lambda: Settings(rate_min=2000.0, rate_max=1.0))
    assert main(["doctor"]) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "wrong   settings      invalid settings: RATE_MIN=2000.0 is above RATE_MAX=1.0; do: correct"
    )
    assert not any(check.name in line for check in OF_SERVERS for line in rest)


def test_without_a_system_no_server_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL", "SLUICE_SYSTEM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "OF_SHELL", OF_SHELL[:1])
    assert main(["doctor", "--json", "--seconds", "60"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert [line["name"] for line in said["lines"]] == ["settings", "packages"]
    assert said["lines"][0]["what"].endswith("./run.sh starts one, or set them")


def test_if_all_is_well_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "look", lambda **_: [Finding("settings", State.OK, "3 differ from the defaults")])
    assert main(["doctor"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
