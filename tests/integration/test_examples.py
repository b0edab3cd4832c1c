"""The examples that run here: the commands of their READMEs, against a running ingest or a real PostgreSQL."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psycopg2
import pytest

from checks.clients.kits import DEBIAN
from checks.testbed.kits import COLLECTOR, Kit, cache_folder
from checks.testbed.processes import ROOT
from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.event import RecordedEvent
from pipeline.sink.migrate import migrate
from stack.servers import free_port
from support.running_ingest import RunningIngest, eventually, running_ingest
from support.sinks import sink_settings

EXAMPLES = ROOT / "examples"
TRACE = "0af7651916cd43dd8448eb211c80319c"
_OPENER = build_opener(ProxyHandler({}))


def last_command(example: str) -> list[str]:
    """The last command of an example's README, as words, for this Python."""
    [block] = re.findall(r"^```\n(.*?)^```$", (EXAMPLES / example / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    words = shlex.split(block.strip().splitlines()[-1].rpartition(" && ")[2])
    assert words[0] == f".local/{example}/bin/python"
    return [sys.executable, *words[1:]]


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


@contextlib.contextmanager
def running_app(command: list[str], folder: Path, edge: RunningIngest, port: int) -> Iterator[str]:
    """An app of an example, until SIGTERM; yields its address."""
    environ = {**os.environ, "SLUICE_URL": f"http://127.0.0.1:{edge.port}", "PORT": str(port)}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "clients" / "python" / "src"), environ.get("PYTHONPATH", "")])
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: ask(f"{address}/articles/17")[0] == 200, f"the app answers: {log.read_text()}")
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS_MAX) == 128 + signal.SIGTERM, log.read_text()
    finally:
        process.kill()
        process.wait()


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """The status of a request, and its X-Request-ID."""
    try:
        with _OPENER.open(Request(url, method=method, headers=headers), timeout=WAIT_SECONDS_MAX) as answer:
            return answer.status, answer.headers["X-Request-ID"]
    except HTTPError as error:
        with error:
            return error.code, error.headers["X-Request-ID"]


@pytest.mark.parametrize("example", ["fastapi", "django"])
def test_an_app_sends_the_records_of_its_requests(
    example: str, edge: RunningIngest, tmp_path: Path, missing: Callable[[str], None]
) -> None:
    if importlib.util.find_spec(example) is None:
        missing(f"{example} (pip install -r requirements-dev.txt)")
    before, port = edge.records(), free_port()
    command = [str(port) if word == "8002" else word for word in last_command(example)]
    # When the app of the README answers requests, and ends right after the last one
    with running_app(command, tmp_path, edge, port) as address:
        traced = {"traceparent": f"00-{TRACE}-{'b' * 16}-01", "X-Request-ID": "r1"}
        assert ask(f"{address}/articles/17", **traced) == (200, "r1")
        status, own = ask(f"{address}/articles/99")
        assert status == 404
        assert ask(f"{address}/articles/17/orders", "POST")[0] == 201
        assert ask(f"{address}/articles/18/orders", "POST")[0] == 500
    # Then each record is an event with the ids of its request, and its extra as attributes
    new = [one for one in edge.records() if one not in before]
    assert {one.source for one in new} == {"shop"}
    by_request = {(one.message, str(attributes(one).get("requestId"))): one for one in new}
    looked = by_request["article 17 was looked at", "r1"]
    assert (looked.severity, looked.correlation_id, attributes(looked)["article"]) == ("INFO", TRACE, 17)
    assert by_request["there is no article 99", own].severity == "WARN"
    # And so is what the framework says of a request that failed
    [failed] = [one for one in new if attributes(one).get("exception.type") == "ZeroDivisionError"]
    assert failed.severity == "ERROR"
    assert attributes(failed)["requestId"] == failed.correlation_id  # also if the server logs it after the request
    assert "share = 1 / STOCK[number]" in str(attributes(failed)["exception.stacktrace"])


def attributes(record: RecordedEvent) -> dict[str, Any]:
    return dict(record.attributes or {})


def configured(example: str, name: str, folder: Path, **changes: str) -> Path:
    """A copy of an example's configuration, with folders and ports of the test's own."""
    text = (EXAMPLES / example / name).read_text()
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    path = folder / name
    path.write_text(text)
    return path


@contextlib.contextmanager
def running(command: list[str | Path], folder: Path, **environ: str) -> Iterator[None]:
    """A program until the block ends."""
    log = folder / "program.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environ}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def built(kit: Kit, program: str, client: str) -> Path:
    """The folder of a program that `python -m checks.clients` made, which takes minutes; skips without it."""
    path = kit.kept(cache_folder())
    if path is None or not (path / program).exists():
        pytest.skip(f"{program} is not there: python -m checks.clients --only {client} makes it")
    return path


def test_the_collector_sends_lines_of_files(edge: RunningIngest, tmp_path: Path) -> None:
    kit = built(COLLECTOR, "collector", "otel-collector")
    before, logs = edge.records(), tmp_path / "logs"
    (tmp_path / "queue").mkdir()
    logs.mkdir()
    path = configured(
        "otel-collector", "collector.yaml", tmp_path,
        **{"/var/lib/otelcol": str(tmp_path / "queue"), "/var/log/shop": str(logs),
           "localhost:8080": f"127.0.0.1:{edge.port}"},
    )  # fmt: skip
    (logs / "app.log").write_text("the first line\nthe second line\n")
    with running([kit / "collector", "--config", path], tmp_path):
        eventually(lambda: len(edge.records()) == len(before) + 2, "both lines were sent")
    new = [one for one in edge.records() if one not in before]
    assert sorted((one.source, one.message) for one in new) == [("shop", "the first line"), ("shop", "the second line")]


def test_rsyslog_sends_what_sluice_understands(edge: RunningIngest, tmp_path: Path) -> None:
    # Given rsyslog with the example's template and action, and a listener in the place of Fluent Bit
    kit = built(DEBIAN, "rsyslogd", "rsyslog")
    before = edge.records()
    (tmp_path / "spool").mkdir()
    (tmp_path / "input.log").write_text('a "quoted" line\n')
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        source = (
            f'module(load="imfile")\ninput(type="imfile" File="{tmp_path}/input.log" Tag="shop" Severity="warning")'
        )
        path = configured(
            "rsyslog", "rsyslog.conf", tmp_path,
            **{"/var/spool/rsyslog": str(tmp_path / "spool"), 'port="5170"': f'port="{port}"',
               'module(load="imuxsock")': source},
        )  # fmt: skip
        command: list[str | Path] = [kit / "rsyslogd", "-n", "-f", path, "-i", tmp_path / "pid", "-M", kit / "rsyslog"]
        with running(command, tmp_path, LD_LIBRARY_PATH=str(kit / "lib")):
            listener.settimeout(WAIT_SECONDS_MAX)
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.settimeout(WAIT_SECONDS_MAX)
                line = lines.readline()
    # When Fluent Bit sends the record of that line
    send_as_fluent_bit(edge, [json.loads(line)])
    [event] = [one for one in edge.records() if one not in before]
    assert (event.message.strip(), event.severity, event.source) == ('a "quoted" line', "WARN", "shop")


def test_what_fluent_bit_sends_becomes_events(edge: RunningIngest) -> None:
    # Its tail has the line in `log`, and the filter adds the service
    before = edge.records()
    send_as_fluent_bit(
        edge, [{"log": "the first line", "service.name": "shop"}, {"log": "another", "service.name": "shop"}]
    )
    new = [one for one in edge.records() if one not in before]
    assert sorted((one.source, one.message) for one in new) == [("shop", "another"), ("shop", "the first line")]
    assert {one.timestamp for one in new} == {1_767_323_045_250}


def send_as_fluent_bit(edge: RunningIngest, records: list[dict[str, Any]]) -> None:
    """What its output `http` posts with `format json`: an array, each record with the key `date`."""
    body = json.dumps([{"date": 1767323045.25, **one} for one in records]).encode()
    url = f"http://127.0.0.1:{edge.port}/api/logs/lines"
    with _OPENER.open(Request(url, body, {"Content-Type": "application/json"}), timeout=WAIT_SECONDS_MAX) as answer:
        assert answer.status == 202


# --- The picture of an incident --------------------------------------------------------------------------------------

BEGAN = datetime(2026, 1, 31, 3, tzinfo=UTC)
INSERT = """
INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at, log_id,
                        log_partition, log_offset, stored_at)
SELECT gen_random_uuid()::text, 'c', %s, 'm', 's', now(), %s, 'l', 0, 0, %s FROM generate_series(1, %s)
"""


@pytest.fixture
def incident_url(database_url: str) -> str:
    """A minute of 10 INFO/s. Nothing was stored from second 20 to 40; 5 ERROR/s in the first half of that."""
    migrate(sink_settings(database_url))
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        for second in range(-5, 65):
            received = BEGAN + timedelta(seconds=second)
            stored = BEGAN + timedelta(seconds=40.5) if 20 <= second < 40 else received + timedelta(seconds=0.1)
            cursor.execute(INSERT, ("INFO", received, stored, 10))
            if 20 <= second < 30:
                cursor.execute(INSERT, ("ERROR", received, stored, 5))
        # And what waits already at the beginning, and is stored after the end
        cursor.execute(INSERT, ("INFO", BEGAN - timedelta(seconds=9), BEGAN + timedelta(seconds=1.5), 7))
        cursor.execute(INSERT, ("INFO", BEGAN + timedelta(seconds=58), BEGAN + timedelta(hours=1), 3))
    return database_url


def test_the_figures_of_an_incident_are_those_of_the_table(incident_url: str, plot: ModuleType) -> None:
    with contextlib.closing(psycopg2.connect(incident_url)) as connection:
        found = plot.read(connection, BEGAN, BEGAN + timedelta(seconds=60), 60)
    assert found.times[0] == BEGAN + timedelta(seconds=1)
    assert found.accepted["INFO"] == [10.0] * 58 + [13.0, 10.0]
    assert found.accepted["ERROR"] == [0.0] * 20 + [5.0] * 10 + [0.0] * 30
    assert found.stored == [10.0, 17.0] + [10.0] * 18 + [0.0] * 20 + [260.0] + [10.0] * 19
    assert found.waiting[:3] == [7, 0, 0]
    assert found.waiting[19:42] == [0, *range(15, 151, 15), *range(160, 251, 10), 0, 0]
    assert found.waiting[57:] == [0, 3, 3]
    assert found.oldest_seconds[:2] == [10.0, 0.0]
    assert found.oldest_seconds[19:42] == [0.0, *range(1, 21), 0.0, 0.0]
    assert found.oldest_seconds[57:] == [0.0, 1.0, 2.0]


def test_the_command_draws_the_incident_and_says_the_worst(
    incident_url: str, plot: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, script, *options = last_command("incident")
    assert (script, options) == ("examples/incident/plot.py", ["--minutes", "15", "--out", "incident.svg"])
    options = ["--from", "2026-01-31T03:00Z", "--to", "2026-01-31T03:01", "--points", "60", *options]
    monkeypatch.setenv("DATABASE_URL", incident_url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *options])
    assert plot.main() == 0
    worst = "2026-01-31 03:00:01 to 03:01:00 UTC: at most 250 events waited (at 03:00:40), the oldest for 20 s"
    assert capsys.readouterr().out == f"{worst}\nincident.svg\n"
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "incident.svg").read_text())
    assert {worst, "INFO", "ERROR", "stored", "accepted, events/s", "waiting, events", "oldest, s"} <= set(texts)
    assert "DEBUG" not in texts
    # And a time without events is an error that says what to do
    monkeypatch.setattr(sys, "argv", [script, "--from", "2020-01-01", "--to", "2020-01-02"])
    assert plot.main() == 1
    said = capsys.readouterr()
    assert (said.out, "name another time with --from and --to" in said.err) == ("", True)


@pytest.fixture(scope="module")
def plot(missing: Callable[[str], None]) -> Iterator[ModuleType]:
    if importlib.util.find_spec("matplotlib") is None:
        missing("matplotlib (pip install -r requirements-dev.txt)")
    spec = importlib.util.spec_from_file_location("plot", EXAMPLES / "incident" / "plot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plot"] = module  # its dataclass looks for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["plot"]
