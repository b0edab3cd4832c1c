"""Private servers after a crash of the machine: what the file system and the process table may hold then."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from checks.testbed.waiting import WAIT_SECONDS_MAX
from stack.servers import (
    Server,
    ServerError,
    free_port,
    kafka_is_possible,
    kafka_server,
    postgres_server,
    redis_server,
    resolve_kafka,
    runs,
    wait_stopped,
)


def keys_of(server: Server) -> list[bytes]:
    with redis.Redis(port=server.port) as client:
        return sorted(client.keys())


@pytest.mark.parametrize("padding", [1, 4096, 100_000])
def test_redis_starts_on_a_file_that_ends_with_nul_bytes(tmp_path: Path, padding: int) -> None:
    # Given a Redis whose append-only file and manifest were made longer by the file system, and not written
    server = redis_server(tmp_path, free_port(), is_log=True, maxmemory="64mb").start()
    with redis.Redis(port=server.port) as client:
        client.set("kept", b"\0\0")
    server.kill()
    folder = tmp_path / "redis-log" / "appendonlydir"
    (file,) = folder.glob("*.incr.aof")
    for path in (file, folder / "appendonly.aof.manifest"):
        with path.open("ab") as stream:
            stream.write(b"\0" * padding)
    # When it starts, then it has all that was written
    try:
        server.start()
        assert keys_of(server) == [b"kept"]
        with redis.Redis(port=server.port) as client:
            assert client.get("kept") == b"\0\0"
    finally:
        server.stop()
    assert "removed" in server.log_path.read_text()


@pytest.mark.parametrize("is_log", [True, False])
def test_what_a_redis_that_never_syncs_has_answered_outlives_its_kill(tmp_path: Path, is_log: bool) -> None:
    server = redis_server(tmp_path, free_port(), is_log=is_log, maxmemory="64mb", durable=False).start()
    try:
        for number in range(5):
            with redis.Redis(port=server.port) as client:
                assert client.config_get("appendfsync") == {"appendfsync": "no"}
                client.rpush("kept", number)
            server.kill()
            server.start()
        with redis.Redis(port=server.port) as client:
            assert client.lrange("kept", 0, -1) == [b"0", b"1", b"2", b"3", b"4"]
    finally:
        server.stop()


def test_a_record_that_was_torn_within_nul_bytes_is_cut_off_alone(tmp_path: Path) -> None:
    # Given a file that ends within a value of NUL bytes: which of them were written can't be told
    server = redis_server(tmp_path, free_port(), is_log=True, maxmemory="64mb").start()
    with redis.Redis(port=server.port) as client:
        client.set("kept", "value")
        client.set("torn", b"\0" * 1000)
    server.kill()
    (file,) = (tmp_path / "redis-log" / "appendonlydir").glob("*.incr.aof")
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(b"\0" * 1000) + 500] + b"\0" * 4096)
    # Then Redis starts without that record
    try:
        server.start()
        assert keys_of(server) == [b"kept"]
    finally:
        server.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Server]:
    server = postgres_server(tmp_path, free_port(), durable=False).start()
    yield server
    server.stop()


def test_postgresql_starts_where_another_process_has_the_number_of_the_one_that_crashed(
    cluster: Server, tmp_path: Path
) -> None:
    # Given a PostgreSQL that was killed, and whose process id another program has since
    cluster.kill()
    pid_file = tmp_path / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    # Of the user that PostgreSQL runs as, as most processes of a laptop are
    as_owner = [*cluster.command[: cluster.command.index("-D") - 1], "sleep", "600"]
    with subprocess.Popen(as_owner) as other:
        try:
            pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
            # Then it starts
            cluster.start()
            assert other.poll() is None
        finally:
            other.kill()


def test_a_postgresql_that_starts_is_not_asked(cluster: Server, tmp_path: Path) -> None:
    # Given the lock file of a PostgreSQL that accepts no connections yet: each would be a FATAL line in its log
    pid_file = tmp_path / "postgres" / "postmaster.pid"
    ready = pid_file.read_text()
    assert cluster.is_ready()
    for status in ("starting", "stopping"):
        pid_file.write_text(ready.replace("ready   ", f"{status:<8}"))
        assert not cluster.is_ready()
    pid_file.write_text(ready)
    assert cluster.is_ready()


def test_a_server_that_was_killed_has_no_process_left(cluster: Server) -> None:
    # Given a PostgreSQL with sessions that have much memory to give back
    with contextlib.ExitStack() as sessions:
        for _ in range(20):
            connection = sessions.enter_context(contextlib.closing(psycopg2.connect(cluster.url)))
            connection.cursor().execute("CREATE TEMPORARY TABLE much AS SELECT generate_series(1, 100000)")
        members = cluster.family()
        assert len(members) > 20
        # When it is killed, then none of its processes runs when that returns
        cluster.kill()
        assert [member for member in members if runs(member)] == []


@pytest.mark.parametrize("is_reused", [False, True], ids=["its number is free", "another program has its number"])
def test_postgresql_starts_after_its_main_process_alone_was_killed(
    cluster: Server, tmp_path: Path, is_reused: bool
) -> None:
    # Given a PostgreSQL whose main process was killed, and a child that has not ended yet
    child = next(member for member in cluster.family() if member.pid != cluster.pid)
    child.suspend()
    wait_stopped([child])
    assert cluster.process is not None
    cluster.process.kill()
    cluster.process.wait()
    pid_file = tmp_path / "postgres" / "postmaster.pid"
    with contextlib.ExitStack() as others:
        if is_reused:
            as_owner = [*cluster.command[: cluster.command.index("-D") - 1], "sleep", "600"]
            other = others.enter_context(subprocess.Popen(as_owner))
            others.callback(other.kill)
            lines = pid_file.read_text().splitlines()
            pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        waking = others.enter_context(ThreadPoolExecutor(1))
        others.callback(_resume, child)  # also where the start fails: nothing of it may stay
        # When it is started while that child still holds the shared memory, then it waits for the child and starts
        started = waking.submit(cluster.start)
        assert not wait([started], timeout=0.5).done
        _resume(child)
        started.result(WAIT_SECONDS_MAX)


def _resume(child: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
        child.resume()


def test_a_postgresql_that_runs_keeps_its_lock(cluster: Server, tmp_path: Path) -> None:
    # Given a PostgreSQL that runs on the data
    pid_file = tmp_path / "postgres" / "postmaster.pid"
    before = pid_file.read_text()
    # When a second one is started there
    second = postgres_server(tmp_path, free_port(), durable=False)
    with pytest.raises(ServerError, match="Is another postmaster"):
        second.start()
    # Then the first goes on
    assert pid_file.read_text() == before
    assert psutil.pid_exists(cluster.pid)


def test_options_of_another_java_program_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: Callable[[str], None]
) -> None:
    if (reason := kafka_is_possible()) is not None:
        missing(reason)
    resolve_kafka()  # Maven's Java takes such options: a proxy may be among them
    # Given a shell whose options no Java accepts
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"):
        monkeypatch.setenv(name, "-XX:NoSuchOption")
    # Then Java is found, and Kafka's folder is prepared by it, without them
    assert kafka_is_possible() is None
    server = kafka_server(tmp_path, free_port(), free_port())
    assert (tmp_path / "kafka" / "data" / "meta.properties").exists()
    words = server.command[: server.command.index("-cp")]
    assert subprocess.run([*words, "-version"], capture_output=True, check=False).returncode == 0
