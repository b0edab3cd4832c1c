"""The Python client in programs of its own, against an ingest on a real socket: ends, forks, signals, frameworks."""

import json
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from sluice_client import Client
from stack.servers import free_port
from support.running_ingest import RunningIngest, client_environ, edge_settings, eventually, running_ingest

PACKAGE = ROOT / "clients" / "python"
SECONDS_MAX = 120.0  # for what takes some tenths of a second on a machine that is not busy


@pytest.fixture
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


def program(script: str, url: str, *arguments: object) -> "subprocess.Popen[str]":
    """A program that begins with a client; `url` and `arguments` are `sys.argv[1:]`.

    Where a test does not say otherwise, its clients have the time that a busy machine needs for answers and at the end.
    """
    head = """
        import atexit, functools, logging, os, signal, sys, time
        import sluice_client
        from sluice_client import SluiceHandler, exit_on_sigterm
        Client = functools.partial(sluice_client.Client, close_seconds=60.0, timeout_seconds=60.0)
        URL, ARGUMENTS = sys.argv[1], sys.argv[2:]
        """
    whole = textwrap.dedent(head) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-Wignore::DeprecationWarning", "-c", whole, url, *map(str, arguments)],
        env=client_environ(url) | {"PYTHONPATH": str(PACKAGE / "src")}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    with process:
        try:
            out, err = process.communicate(timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err


def messages(edge: RunningIngest) -> Counter[str]:
    """How often each message is in the log."""
    return Counter(record.message for record in edge.records())


def url_of(edge: RunningIngest) -> str:
    return f"http://127.0.0.1:{edge.port}"


def numbers(count: int) -> dict[str, int]:
    return {f"{number}": 1 for number in range(count)}


@pytest.mark.parametrize(
    "end", ["pass", "sys.exit(0)", "raise SystemExit", "logging.shutdown()", "client.close()", "atexit.register(late)"]
)
def test_the_end_of_a_program_sends_everything(edge: RunningIngest, end: str) -> None:
    script = f"""
        def late():
            logging.info("200")
        client = Client(URL, source="app", linger_seconds=60)
        logging.basicConfig(level="INFO", handlers=[SluiceHandler(client=client)])
        for number in range(200):
            logging.info("%d", number)
        {end}
    """
    status, _, err = ended(program(script, url_of(edge)))
    assert (status, err) == (0, "")
    assert messages(edge) == numbers(201 if "late" in end else 200)


def test_an_end_without_a_server_is_bounded_and_says_so() -> None:
    script = """
        client = Client(URL, source="app", close_seconds=3)
        for number in range(7):
            client.emit("x")
    """
    status, _, err = ended(program(script, f"http://127.0.0.1:{free_port()}"))
    assert status == 0
    assert "7 events were not sent; last error: http://127.0.0.1:" in err


@pytest.mark.parametrize("how", ["os.fork", "multiprocessing", "pool"])
def test_a_fork_sends_nothing_twice_and_loses_nothing(edge: RunningIngest, how: str) -> None:
    # Given a parent with a full queue, a running thread and an open connection, that forks
    fork = {
        "os.fork": """
            pid = os.fork()
            if pid == 0:
                work("child")
                sys.exit(0)
            os.waitpid(pid, 0)
        """,
        "multiprocessing": """
            import multiprocessing
            child = multiprocessing.get_context("fork").Process(target=work, args=("child",))
            child.start()
            child.join()
        """,
        "pool": """
            import concurrent.futures, multiprocessing
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                pool.submit(work, "child").result()
        """,
    }[how]
    script = f"""
        client = Client(URL, source="app", linger_seconds=0.05)
        def work(name):
            for number in range(100):
                client.emit(f"{{name}} {{number}}")
        work("before")
        assert client.flush(60)
        work("queued")
{textwrap.indent(textwrap.dedent(fork), " " * 8)}
        work("after")
    """
    status, _, err = ended(program(script, url_of(edge)))
    assert (status, err) == (0, "")
    expected = {f"{name} {number}": 1 for name in ("before", "queued", "child", "after") for number in range(100)}
    assert messages(edge) == expected
    assert len({record.event_id for record in edge.records()}) == 400


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_a_child_that_logs_while_its_module_is_imported_sends_everything(
    edge: RunningIngest, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        from sluice_client import Client
        client = Client(sys.argv[1], source="app", linger_seconds=60, close_seconds=60, timeout_seconds=60)
        if __name__ != "__main__":
            client.emit("0")
        def work():
            client.emit("1")
        if __name__ == "__main__":
            child = multiprocessing.get_context(sys.argv[2]).Process(target=work)
            child.start()
            child.join()
    """)
    )
    url = url_of(edge)
    environ = client_environ(url) | {"PYTHONPATH": str(PACKAGE / "src")}
    subprocess.run([sys.executable, str(path), url, how], env=environ, timeout=SECONDS_MAX, check=True)
    assert messages(edge) == numbers(2)


def test_a_fork_while_a_request_runs_does_not_hang(edge: RunningIngest) -> None:
    # Given a log that does not confirm: the sender waits for its answer while the process forks
    edge.log_server.lose_answers()
    script = """
        client = Client(URL, source="app", linger_seconds=0)
        client.emit("parent")
        print("emitted", flush=True)
        sys.stdin.readline()
        pid = os.fork()
        if pid == 0:
            client.emit("child")
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """
    with program(script, url_of(edge)) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        eventually(lambda: messages(edge)["parent"] >= 1, "the request is there")
        process.stdin.write("\n")
        process.stdin.flush()
        eventually(lambda: messages(edge)["child"] >= 1, "the child sends")
        edge.log_server.lose_answers(False)
        assert process.wait(SECONDS_MAX) == 0
    ids = {(record.message, record.event_id) for record in edge.records()}
    assert len(ids) == 2, "what is sent again has the same ids"


@pytest.mark.parametrize("handles", [True, False])
def test_sigterm_sends_everything_if_the_program_asks_for_it(edge: RunningIngest, handles: bool) -> None:
    script = f"""
        {"exit_on_sigterm()" if handles else "pass"}
        client = Client(URL, source="app", linger_seconds=60)
        for number in range(100):
            client.emit(f"{{number}}")
        print("emitted", flush=True)
        time.sleep(60)
    """
    with program(script, url_of(edge)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        status = process.wait(SECONDS_MAX)
    assert status == (128 + signal.SIGTERM if handles else -signal.SIGTERM)
    assert messages(edge) == (numbers(100) if handles else {})


def test_a_killed_program_loses_nothing_that_was_on_disk(edge: RunningIngest, tmp_path: Path) -> None:
    # Given a server that is away, and a program that is killed while events are on disk
    script = """
        client = Client(URL, source="app", queue_bytes_max=1 << 20, block_seconds=20, spill_folder=ARGUMENTS[0])
        for number in range(3000):
            assert client.emit(f"{number}", attributes={"padding": "x" * 800})
        print(client.stats.waiting, flush=True)
        time.sleep(60)
    """
    with program(script, f"http://127.0.0.1:{free_port()}", tmp_path) as process:
        assert process.stdout is not None
        waiting = int(process.stdout.readline())
        process.kill()
    on_disk = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.ndjson"))
    assert on_disk >= 3000 - waiting > 1000
    # When the program starts again
    script = """
        client = Client(URL, source="app", spill_folder=ARGUMENTS[0])
        while client.stats.accepted < int(ARGUMENTS[1]):
            time.sleep(0.01)
    """
    status, _, err = ended(program(script, url_of(edge), tmp_path, on_disk))
    assert (status, err) == (0, "")
    stored = messages(edge)
    assert len(stored) == on_disk
    assert set(stored.values()) == {1}


def test_a_limit_in_the_way_delays_events_and_loses_none() -> None:
    with running_ingest(rate_min=300, rate_max=300, body_events_max=100) as edge:
        with Client(url_of(edge), source="app", linger_seconds=0.01) as client:
            for number in range(1000):
                client.emit(f"{number}")
            assert client.flush(SECONDS_MAX)
            stats = client.stats
        assert (stats.accepted, stats.dropped, stats.rejected) == (1000, 0, 0)
        assert messages(edge) == numbers(1000)


def test_with_admission_levels_an_error_does_not_wait_behind_debug() -> None:
    # Given more DEBUG than the rate admits in minutes, in bodies so small that what is kept for others is not used up
    with running_ingest(rate_max=20.0, rate_min=20.0, admission_levels=True) as edge:
        client = Client(url_of(edge), source="app", linger_seconds=0.02, batch_events_max=1)
        for number in range(5000):
            client.emit(f"{number}", severity="DEBUG")
        eventually(lambda: "for higher levels" in client.stats.last_error, "DEBUG is refused for its level")
        # When an ERROR comes
        client.emit("error", severity="ERROR")
        eventually(lambda: messages(edge)["error"] == 1, "it is accepted")
        # Then DEBUG still waits
        assert client.stats.waiting > 0
        client.close(0)


def test_a_restart_of_ingest_and_answers_that_were_lost_cost_nothing() -> None:
    settings = edge_settings()
    edge = RunningIngest(settings).start()
    log = edge.memory_log
    log_server = edge.log_server
    with Client(f"http://127.0.0.1:{settings.ingest_port}", source="app", linger_seconds=0.01) as client:
        log_server.lose_answers()
        for number in range(300):
            client.emit(f"{number}")
        eventually(lambda: "503" in client.stats.last_error, "an outcome is unknown")
        edge.stop()
        log_server.lose_answers(False)
        edge = RunningIngest(settings, log).start()
        edge.log_server = log_server
        edge.memory_log = log
        assert client.flush(SECONDS_MAX)
        stats = client.stats
    try:
        assert (stats.accepted, stats.dropped) == (300, 0)
        assert stats.repeated > 0
        records = edge.records()
        assert {record.message for record in records} == set(numbers(300))
        assert len({record.event_id for record in records}) == 300
    finally:
        edge.stop()


def test_logging_is_configured_by_a_dictionary(edge: RunningIngest) -> None:
    script = """
        import logging.config
        logging.config.dictConfig({
            "version": 1,
            "handlers": {"sluice": {
                "class": "sluice_client.SluiceHandler", "level": "INFO", "url": URL, "source": "shop",
                "close_seconds": 60.0, "on_drop": "ext://sys.stderr.write",
            }},
            "root": {"level": "DEBUG", "handlers": ["sluice"]},
        })
        logging.getLogger("a.b").warning("seen", extra={"n": 1})
        logging.debug("not seen")
    """
    status, _, err = ended(program(script, url_of(edge)))
    assert (status, err) == (0, "")
    [record] = edge.records()
    assert (record.message, record.severity, record.source) == ("seen", "WARN", "shop")
    assert record.attributes is not None
    assert (record.attributes["n"], record.attributes["logger"]) == (1, "a.b")


def test_the_wheel_installs_into_an_empty_environment(edge: RunningIngest, tmp_path: Path) -> None:
    # Given a wheel of the package, and an environment without any package
    copied = tmp_path / "source"
    subprocess.run(["cp", "-r", str(PACKAGE), str(copied)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    built = [
        *pip,
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
        str(copied),
    ]
    subprocess.run(built, check=True, timeout=RUN_SECONDS_MAX)
    [wheel] = tmp_path.glob("sluice_client-*.whl")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=RUN_SECONDS_MAX
    )
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", str(python), "install", "--quiet", "--no-index", str(wheel)],
        check=True,
        timeout=RUN_SECONDS_MAX,
    )
    # Then every module of it can be imported, it has its types, and its command sends
    environ = {"PATH": "/usr/bin:/bin", "SLUICE_URL": url_of(edge)}
    script = (
        "import importlib, pathlib, pkgutil, sluice_client; "
        "[importlib.import_module(f'sluice_client.{one.name}') for one in pkgutil.iter_modules(sluice_client.__path__)"
        " if one.name != '__main__']; print((pathlib.Path(sluice_client.__file__).parent / 'py.typed').exists())"
    )
    said = subprocess.run([python, "-c", script], env=environ, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout == "True\n"
    event = {"correlationId": "c", "severity": "INFO", "message": "m", "source": "s", "timestamp": 1234567890000}
    path = tmp_path / "events.ndjson"
    path.write_text(json.dumps(event))
    sent = subprocess.run(
        [tmp_path / "env" / "bin" / "sluice", "send", path], env=environ, capture_output=True, text=True, check=False
    )
    assert (sent.returncode, sent.stdout, sent.stderr) == (0, "accepted 1\nrepeated 0\nrejected 0\n", "")
    assert messages(edge) == {"m": 1}


def test_the_version_is_the_same_everywhere() -> None:
    import tomllib

    from sluice_client.wire import VERSION

    project: dict[str, Any] = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    assert project["dependencies"] == []
