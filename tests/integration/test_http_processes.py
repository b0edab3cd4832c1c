"""Whole ingest processes on real Redis servers: start, stop, kill, freeze, and several on one port."""

import contextlib
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from checks.testbed.processes import ROOT, Program, ingest
from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX, least_seconds
from checks.testbed.wire import Wire, get, post, request
from pipeline import wiring
from pipeline.control_store.redis import RedisControlStore
from pipeline.event import decode_record
from pipeline.names import Mode
from pipeline.settings import Settings
from stack.config import environ_of
from stack.servers import Server, free_port
from support.running_ingest import eventually, metric, sample
from support.traffic import Traffic


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The fixture's, with a port of the test's own and a rate that is not in the way."""
    return replace(settings, ingest_port=free_port(), rate_min=1e5, rate_max=1e5)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start ingest processes; they are ended with the test."""
    programs: list[Program] = []

    def start_one(settings: Settings, *, ready: bool = True) -> Program:
        program = ingest(settings, tmp_path, f"ingest-{len(programs)}")
        programs.append(program)
        program.start()
        if ready:
            eventually(lambda: get(settings.ingest_port, "/readyz").status == 200, "ingest is ready")
            eventually(lambda: _serves(program), "so is this one of those that share the port")
        return program

    yield start_one
    for program in programs:
        program.stop(seconds_max=5)


def _serves(program: Program) -> bool:
    """Whether it has come so far that it handles SIGTERM."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{program.pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> signal.SIGTERM - 1 & 1)


Start = Callable[..., Program]
RATE_TRIES = 4  # of what a busy machine may make less than it is


def url_of(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.ingest_port}"


def ids_in_log(settings: Settings) -> Counter[str]:
    """How often each event id is in the log."""
    found: Counter[str] = Counter()
    log = wiring.make_log(settings)
    with contextlib.closing(log):
        for position in log.positions():
            offset = position.begin
            while offset < position.end:
                batch = log.read(position.partition, offset, records_max=5000, wait_seconds=0.1)
                assert batch is not None
                found.update(decode_record(value).event_id for value in batch.values)
                offset = batch.next_offset
    return found


def assert_promises(traffic: Traffic, settings: Settings) -> None:
    """What was acknowledged is in the log once; what was refused is not."""
    in_log = ids_in_log(settings)
    outcomes = traffic.outcomes
    assert outcomes.acked, outcomes.statuses
    assert outcomes.acked <= set(in_log), f"{len(outcomes.acked - set(in_log))} lost: {outcomes.statuses}"
    assert not outcomes.refused & set(in_log), outcomes.statuses
    assert not [one for one in outcomes.acked if in_log[one] != 1]


def test_the_sample_event_reaches_the_log_on_redis(settings: Settings, start: Start) -> None:
    start(settings)
    assert post(settings.ingest_port, sample(eventId="one")).json == {"accepted": 1}
    assert ids_in_log(settings) == {"one": 1}


def test_a_stop_under_load_loses_nothing_and_ends_with_0(settings: Settings, start: Start) -> None:
    program = start(settings)
    with Traffic(url_of(settings), events_per_second=2000, events_max=200_000, threads=8) as traffic:
        traffic.wait_acked(1000)
        started = time.monotonic()
        assert program.stop() == 0
        assert time.monotonic() - started < 5 + BUSY_SECONDS
    assert "Traceback" not in program.log()
    assert_promises(traffic, settings)
    # a stop in order leaves no request without an answer
    assert traffic.outcomes.statuses["no answer"] <= 8, "at most an idle connection each, closed as it was used again"


def test_a_kill_under_load_loses_nothing_that_was_acknowledged(settings: Settings, start: Start) -> None:
    program = start(settings)
    with Traffic(url_of(settings), events_per_second=2000, events_max=200_000, threads=8) as traffic:
        traffic.wait_acked(500)
        program.kill()
        program.start()
        traffic.wait_acked(500)
    assert_promises(traffic, settings)


def test_several_processes_share_a_port_and_one_rate(settings: Settings, start: Start) -> None:
    # Given two processes, and a rate of 500 events/s
    settings = replace(settings, rate_min=100, rate_max=500)
    store = RedisControlStore(settings)
    published = threading.Event()

    def publish() -> None:
        while not published.wait(0.5):
            _publish(store, 500)

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    _publish(store, 500)
    programs = [start(settings) for _ in range(2)]
    # When eight connections ask for much more, for some seconds; a machine that stands still uses less than the rate
    for number in range(1, RATE_TRIES + 1):
        traffic, is_used = _keeps_the_rate(settings)
        if is_used:
            break
        assert number < RATE_TRIES, traffic.outcomes.statuses
    published.set()
    publisher.join(WAIT_SECONDS_MAX)
    assert [program.stop() for program in programs] == [0, 0]
    assert_promises(traffic, settings)


def _keeps_the_rate(settings: Settings) -> tuple[Traffic, bool]:
    """Whether clients that ask for far more used nearly the whole rate of 500 events/s; they must not get more."""
    started = time.monotonic()
    with Traffic(url_of(settings), events_per_second=4000, events_max=12_000, batch=20, threads=8) as traffic:
        while time.monotonic() < started + 3 and any(thread.is_alive() for thread in traffic._threads):
            time.sleep(0.05)  # noqa: TID251  # load for some seconds is what is asked for
    accepted = len(traffic.outcomes.acked)
    elapsed = time.monotonic() - started
    # Then the rate held over both: what it allows, one burst, one body, and a lease of each
    leases = 2 * 1.5 * 500 * settings.lease_seconds
    assert accepted <= 1.01 * 500 * elapsed + 500 + 19 + leases, traffic.outcomes.statuses
    return traffic, accepted >= 0.9 * 500 * elapsed and traffic.outcomes.statuses["429"] > 0


def test_several_processes_refuse_low_levels_first(settings: Settings, start: Start) -> None:
    # Given two processes with a rate of 100 events/s
    settings = replace(settings, rate_min=100, rate_max=100, burst_seconds=3.0, admission_levels=True)
    _publish(RedisControlStore(settings), 100)
    for _ in range(2):
        start(settings)
    # When eight connections send twice that, and then five times; the shares are those of a machine that has time
    for number in range(1, RATE_TRIES + 1):
        at_two, at_five = (_Mix(settings.ingest_port, times * 100.0, seconds=6.0) for times in (2, 5))
        at_two.send()
        at_five.send()
        assert set(at_five.limited_by) <= {"level", "rate"}
        if _low_levels_came_last(at_two, at_five):
            break
        assert number < RATE_TRIES, (at_two.counts, at_five.counts, at_five.limited_by)


def _low_levels_came_last(at_two: "_Mix", at_five: "_Mix") -> bool:
    """Whether errors and warnings passed, as far as the rate sufficed, and the others were told why they did not."""
    return (
        min(at_two.part("ERROR"), at_two.part("WARN"), at_five.part("ERROR")) >= 0.99
        and at_five.part("WARN") >= 0.95
        and at_five.part("DEBUG") < 0.8 * at_five.part("INFO") < at_five.part("WARN")
        and at_five.limited_by["level"] > 0.9 * sum(at_five.limited_by.values())
    )


class _Mix:
    """Single events at random times from several connections: 40 % DEBUG, 40 % INFO, 15 % WARN, 5 % ERROR."""

    CONNECTIONS = 8

    def __init__(self, port: int, rate: float, *, seconds: float) -> None:
        self._port, self._rate, self._seconds = port, rate, seconds
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, int]] = Counter()  # by severity and status
        self.limited_by: Counter[str] = Counter()

    def send(self) -> None:
        """Send for some seconds of load. A machine that is too slow takes longer for it, up to some limit."""
        threads = [threading.Thread(target=self._send, args=(number,)) for number in range(self.CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def part(self, severity: str) -> float:
        """The accepted part of what was accepted or refused with this severity."""
        accepted, refused = self.counts[severity, 202], self.counts[severity, 429]
        return accepted / (accepted + refused)

    def _send(self, number: int) -> None:
        chance = random.Random(number)
        due = started = time.monotonic()
        sent, wanted = 0, int(self._rate * self._seconds / self.CONNECTIONS)
        with Wire(self._port) as wire:
            while sent < wanted and time.monotonic() < started + 5 * self._seconds:
                due = max(due + chance.expovariate(self._rate / self.CONNECTIONS), time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))  # noqa: TID251  # a steady load is what is asked for
                severity = chance.choices(("DEBUG", "INFO", "WARN", "ERROR"), (40, 40, 15, 5))[0]
                wire.send(request(json.dumps(sample(severity=severity)).encode()))
                answer = wire.answer()
                sent += 1
                with self._lock:
                    self.counts[severity, answer.status] += 1
                    if answer.status == 429:
                        self.limited_by[answer.error["limitedBy"]] += 1


def _publish(store: RedisControlStore, rate: float) -> None:
    now = store.state().time
    store.publish_rate(base_rate=rate, floor_rate=100, mode=Mode.NORMAL, lag=0, lag_known_at=now, actor="test")


def test_a_publication_is_followed_within_100_ms(settings: Settings, start: Start) -> None:
    start(settings)
    store = RedisControlStore(settings)

    def rate() -> float:
        return float(get(settings.ingest_port, "/api/logs/health").json["rateLimit"])

    rates = itertools.cycle((5000.0, 400.0, 900.0))

    def seconds_to_follow() -> float:
        _publish(store, wanted := next(rates))
        published = time.monotonic()
        eventually(lambda: rate() == wanted, "the rate is followed")
        return time.monotonic() - published

    assert least_seconds(seconds_to_follow, below=0.1) < 0.1


def test_it_starts_without_any_server_and_finds_them(settings: Settings, start: Start, tmp_path: Path) -> None:
    from stack.servers import redis_server

    # Given no server at all, PostgreSQL included
    control = redis_server(tmp_path, free_port(), is_log=False, maxmemory="64mb", durable=False)
    log = redis_server(tmp_path, free_port(), is_log=True, maxmemory="64mb", durable=False)
    settings = replace(
        settings,
        redis_url=control.url,
        event_log_url=log.url,
        database_url=f"postgresql://localhost:{free_port()}/none",
    )
    program = start(settings, ready=False)
    try:
        eventually(lambda: get(settings.ingest_port, "/healthz").status == 200, "alive")
        assert get(settings.ingest_port, "/readyz").status == 503
        assert post(settings.ingest_port, sample()).error["code"] == "unavailable"
        assert get(settings.ingest_port, "/api/logs/health").json["status"] == "critical"
        eventually(lambda: metric(settings.ingest_port, "sluice_ingest_admission_local") == 1, "goes by the floor")
        # When they come up, it is ready without a hand
        control.start()
        log.start()
        eventually(lambda: get(settings.ingest_port, "/readyz").status == 200, "ready")
        eventually(lambda: post(settings.ingest_port, sample()).status == 202, "takes events")
        assert program.stop() == 0
    finally:
        control.stop()
        log.stop()


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_the_log_goes_away_under_load(settings: Settings, start: Start, own_log_redis: Server, how: str) -> None:
    settings = replace(settings, event_log_url=own_log_redis.url, append_seconds_max=1.0)
    start(settings)
    with Traffic(url_of(settings), events_per_second=1000, events_max=100_000) as traffic:
        traffic.wait_acked(300)
        getattr(own_log_redis, how)()
        eventually(lambda: get(settings.ingest_port, "/readyz").status == 503, "not ready")
        # Every answer comes in time, and is an honest one
        for _ in range(3):
            started = time.monotonic()
            answer = post(settings.ingest_port, sample())
            assert answer.status == 503
            assert answer.error["code"] in ("unavailable", "indeterminate")
            assert time.monotonic() - started < 1.5 + BUSY_SECONDS
        own_log_redis.start() if how == "kill" else own_log_redis.thaw()
        traffic.wait_acked(300)
    eventually(lambda: get(settings.ingest_port, "/readyz").status == 200, "ready again")
    assert_promises(traffic, settings)
    assert set(traffic.outcomes.statuses) <= {"202", "503 unavailable", "503 indeterminate"}


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_the_control_server_goes_away_under_load(
    settings: Settings, start: Start, own_control_redis: Server, how: str
) -> None:
    settings = replace(settings, redis_url=own_control_redis.url, rate_min=100, rate_max=500, ingest_processes_max=1)
    store = RedisControlStore(settings)
    _publish(store, 500)
    start(settings)
    with Traffic(url_of(settings), events_per_second=1500, events_max=200_000, batch=5) as traffic:
        traffic.wait_acked(300)
        getattr(own_control_redis, how)()
        eventually(lambda: metric(settings.ingest_port, "sluice_ingest_admission_local") == 1, "goes by itself")
        # The last rate holds, without another burst
        started = time.monotonic()
        before = len(traffic.outcomes.acked)
        traffic.wait_acked(1000)
        accepted = len(traffic.outcomes.acked) - before
        elapsed = time.monotonic() - started  # not before `accepted` is known: a busy machine may take its time
        assert accepted <= 1.1 * 500 * elapsed + 50

        def seconds_to_say() -> float:
            started = time.monotonic()
            assert get(settings.ingest_port, "/api/logs/health").json["status"] in ("degraded", "critical")
            assert get(settings.ingest_port, "/readyz").status == 200
            return time.monotonic() - started

        assert least_seconds(seconds_to_say, below=0.5) < 0.5
        own_control_redis.start() if how == "kill" else own_control_redis.thaw()
        eventually(lambda: metric(settings.ingest_port, "sluice_ingest_admission_local") == 0, "the bucket decides")
        traffic.wait_acked(100)
    assert_promises(traffic, settings)
    assert set(traffic.outcomes.statuses) <= {"202", "429"}


def test_a_frozen_ingest_thaws_and_keeps_its_promises(settings: Settings, start: Start) -> None:
    program = start(settings)
    with Traffic(url_of(settings), events_per_second=1000, events_max=100_000) as traffic:
        traffic.wait_acked(300)
        program.freeze()
        with Wire(settings.ingest_port, seconds_max=1) as wire:
            wire.send(request(json.dumps(sample()).encode()))
            with pytest.raises(TimeoutError):
                wire.answer()
        program.thaw()
        traffic.wait_acked(300)
    assert_promises(traffic, settings)


def test_metrics_have_a_port_of_their_own(settings: Settings, start: Start) -> None:
    settings = replace(settings, ingest_metrics_port=free_port())
    start(settings)
    assert post(settings.ingest_port, sample()).status == 202
    port = settings.ingest_metrics_port
    assert metric(port, "sluice_ingest_accepted_events_total") == 1
    # What is not counted but looked at is there too, as it is now: an alert says that the log is down otherwise
    assert metric(port, "sluice_ingest_log_answers") == 1
    assert metric(port, "sluice_ingest_rate") == settings.rate_max


def _fails(settings: Settings, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ingest"],
        cwd=ROOT,
        env={**environ_of(settings), "PATH": "/usr/bin:/bin", **changes},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


def test_what_cannot_be_is_said_in_one_line(settings: Settings) -> None:
    done = _fails(settings, INGEST_HOST="192.0.2.1")
    assert done.returncode == 2
    assert "set INGEST_KEYS=yes (docs/keys.md)" in done.stderr
    assert "or INGEST_OPEN=yes if everybody" in done.stderr
    assert done.stderr.count("\n") == 1
    done = _fails(settings, INGEST_HOST="192.0.2.1", INGEST_OPEN="yes", OPERATOR_OPEN="yes")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(settings.ingest_port) in done.stderr
    done = _fails(settings, BODY_BYTES_MAX="many")
    assert done.returncode == 2
    assert "BODY_BYTES_MAX" in done.stderr
    assert done.stderr.count("\n") == 1


def test_with_too_few_file_descriptors_it_takes_fewer_connections_and_says_so(
    settings: Settings, tmp_path: Path
) -> None:
    # Given an ingest process that may open fewer files than INGEST_CONNECTIONS_MAX
    program = Program("ingest", ["ingest"], settings, tmp_path, under=("prlimit", "--nofile=60:260"))
    program.start()
    try:
        eventually(lambda: get(settings.ingest_port, "/readyz").status == 200, "ingest is ready")
        # When more clients connect than it has files for
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                last = stack.enter_context(
                    socket.create_connection(("127.0.0.1", settings.ingest_port), timeout=WAIT_SECONDS_MAX)
                )
            # Then one too many is told so
            assert b" 503 " in last.recv(1000)
        # And when they have left, it goes on
        eventually(lambda: post(settings.ingest_port, sample()).status == 202, "events are accepted")
    finally:
        program.stop(seconds_max=5)
    assert (
        "INGEST_CONNECTIONS_MAX=2000 needs 2200 open files and this process may have 260: it takes 60 connections"
        in (program.log())
    )
    assert "Too many open files" not in program.log()
    assert "Traceback" not in program.log()
