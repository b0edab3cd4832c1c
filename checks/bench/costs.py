"""M12: the cost of each optional feature: keys, TLS, client certificates, signing, WAITAOF.

Each row but one is a ratio to the same work without the feature, measured in turns in the same minutes. All variants
of ingest run at once; only one of them at a time has load.
"""

import contextlib
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from checks.bench.certificates import Authority
from checks.bench.edge import BATCH_EVENTS, measure_requests, process
from checks.bench.machine import LOAD_CORE, Options, run_anywhere, run_on, started
from checks.bench.process import Cost, cpu_seconds
from checks.bench.table import Line, at_most, ratios
from checks.loadgen.closed_load import Tls, an_event, post, run_load
from ingest.accounts import Accounts
from ingest.keys import KeyRing
from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.errors import SluiceError
from pipeline.keys import ApiKey, digest_of, make_key
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.names import ProtocolName
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import LOOPBACK, Server, free_port, redis_server
from tasks import signing

MARK: Final = "M12"
HANDSHAKES: Final = 64  # at once
WAIT_SECONDS_MAX: Final = 60.0
RECORD: Final = b"x" * 250
GROUP_EVENTS: Final = 500
CHECKS: Final = 5000  # in a part: some milliseconds
_Costs = dict[str, list[float]]  # units a CPU-second of each round (WAITAOF: units a second)


def run(options: Options, _marks: set[str]) -> list[Line]:
    """Measure and return the lines."""
    costs: _Costs = {}
    run_on(LOAD_CORE)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            home = Path(folder)
            measurements = {
                **_at_ingest(options, home, stack),
                **_of_checks(options),
                **_of_hints(options, home, stack),
                **_of_copies(options, home, stack),
            }
            for _ in range(options.rounds):
                for name, measurement in measurements.items():
                    costs.setdefault(name, []).append(measurement())
    finally:
        run_anywhere()
    return list(lines_of(costs))


def lines_of(costs: _Costs) -> Iterator[Line]:
    """The ratios of the measured costs."""
    ways = {"keys": "API keys", "tls": "TLS", "certs": "TLS with client certificates"}
    for way, words in ways.items():
        yield _line(costs, f"202s of single events a CPU-second: {words} / plain", f"{way} 202", "plain 202")
        yield _line(costs, f"… events in bodies of {BATCH_EVENTS}", f"{way} batch", "plain batch")
        yield _line(costs, "… 429s of single events", f"{way} 429", "plain 429")
    yield _line(costs, "401s without a key a CPU-second / 429s, plain", "keys 401", "plain 429")
    nanoseconds = [1e9 / rate for rate in costs["key sent before"]]
    yield Line(MARK, "the check of a key that its connection has sent before", nanoseconds, at_most(1000), unit="ns")
    yield _line(costs, "… such checks a CPU-second / SHA-256 of the key", "key sent before", "key hashed")
    yield _line(costs, "new connections a CPU-second: with client certificates / TLS", "certs connect", "tls connect")
    yield _line(costs, "hints sent a CPU-second: signed / not signed", "signed sent", "unsigned sent")
    yield _line(costs, "… taken from the queue, and verified", "signed taken", "unsigned taken")
    yield _line(costs, f"appends of {GROUP_EVENTS} events a second: WAITAOF 1 / none", "waited group", "free group")
    yield _line(costs, "… of one event", "waited single", "free single")


def _line(costs: _Costs, what: str, above: str, below: str) -> Line:
    figures = {name: {"per_second": statistics.median(costs[name])} for name in (above, below)}
    return Line(MARK, what, ratios(costs[above], costs[below]), figures=figures)


# --- Ingest -------------------------------------------------------------------------------------------------------


def _at_ingest(options: Options, home: Path, stack: contextlib.ExitStack) -> dict[str, Callable[[], float]]:
    control = started(stack, redis_server(home, free_port(), is_log=False, maxmemory="256mb"))
    log = started(stack, redis_server(home, free_port(), is_log=True, maxmemory="8gb"))
    authority = Authority(home)
    server, client = authority.issue("ingest", address=LOOPBACK), authority.issue("client")
    key, key_id = make_key()
    files: dict[str, Any] = {"ingest_tls_cert": str(server)}
    verified = {"ingest_tls_client": "required", "ingest_tls_client_ca": str(authority.file)}
    ways: dict[str, tuple[dict[str, Any], Tls | None]] = {
        "plain": ({}, None),
        "keys": ({"ingest_keys": True}, None),
        "tls": (files, Tls(authority.file, None)),
        "certs": (files | verified, Tls(authority.file, client)),
    }
    found: dict[str, Callable[[], float]] = {}
    for way, (changes, tls) in ways.items():
        for rate, status in ((10_000_000, 202), (1, 429)):
            settings = Settings(
                redis_url=control.url, event_log_url=log.url, rate_hold_periods=1000, rate_max=rate, rate_min=rate,
                ingest_port=free_port(), operator_port=free_port(), key_prefix=f"m12-{way}-{status}:", **changes,
            )  # fmt: skip
            if way == "keys":
                keys = [ApiKey(key_id, "bench", digest_of(key), (), None, "bench", "a measurement", 0.0)]
                wiring.make_key_mirror(settings).replace(keys, "1", instead_of=None)
            line = f"X-Api-Key: {key}\r\n" if way == "keys" else ""
            pid = stack.enter_context(process([sys.executable, "-m", "ingest"], settings, settings.ingest_port))
            load = _Load(pid, settings.ingest_port, options.seconds, tls)
            load.until(status, _requests(1, line))
            found[f"{way} {status}"] = partial(load.rate, _requests(1, line), 1, status)
            if status == 202:
                found[f"{way} batch"] = partial(load.rate, _requests(BATCH_EVENTS, line), BATCH_EVENTS, status)
                if tls is not None:
                    found[f"{way} connect"] = load.connections
            elif way == "keys":
                found["keys 401"] = partial(load.rate, _requests(1, ""), 1, 401)
    return found


class _Load:
    """Load on one ingest process."""

    def __init__(self, pid: int, port: int, seconds: float, tls: Tls | None) -> None:
        self._pid, self._port, self._seconds, self._tls = pid, port, seconds, tls

    def until(self, status: int, requests: list[bytes]) -> None:
        """Send until the first response with the status."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while time.monotonic() < deadline:
            found = run_load(LOOPBACK, self._port, requests, seconds=0.1, connections=2, tls=self._tls)
            if status in found.statuses:
                return
        raise RuntimeError(f"ingest never answered {status}")

    def rate(self, requests: list[bytes], units: int, status: int) -> float:
        """Units a CPU-second."""
        cost = measure_requests(self._pid, self._port, requests, units, status, self._seconds, tls=self._tls)
        return cost.per_cpu_second

    def connections(self) -> float:
        """New connections a CPU-second, without a request."""
        before, made, deadline = cpu_seconds(self._pid), 0, time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            run_load(LOOPBACK, self._port, [b""], seconds=0.0, connections=HANDSHAKES, tls=self._tls)
            made += HANDSHAKES
        return Cost(made, cpu_seconds(self._pid) - before, self._seconds).per_cpu_second


def _of_checks(options: Options) -> dict[str, Callable[[], float]]:
    """What a valid key costs each request of a connection, in this process: checks a CPU-second, the fastest parts."""
    ring = KeyRing(SystemClock())
    key, key_id = make_key()
    ring.note([ApiKey(key_id, "bench", digest_of(key), (), None, "bench", "a measurement", 0.0)], 0.0)
    client = Accounts(Settings(ingest_keys=True), SystemClock(), ring).client("192.0.2.1")
    field = f"Bearer {key}"
    sent = field[:6] + field[6:]  # as a request has it: the same text in another object
    client.tally_of_key(None, field, ProtocolName.EVENTS)
    parts = 3 if options.quick else 15

    def rate(call: Callable[[], object]) -> float:
        fastest = min(timeit.repeat(call, timer=time.thread_time, number=CHECKS, repeat=parts))
        return CHECKS / fastest

    return {
        "key sent before": lambda: rate(lambda: client.tally_of_key(None, sent, ProtocolName.EVENTS)),
        "key hashed": lambda: rate(lambda: hashlib.sha256(field.encode()).hexdigest()),
    }


def _requests(events: int, line: str) -> list[bytes]:
    encode = msgspec.json.encode
    if events == 1:
        bodies = [encode(an_event(number)) for number in range(500)]
    else:
        bodies = [encode([an_event(number * events + one) for one in range(events)]) for number in range(20)]
    return [post("/api/logs", body, line=line) for body in bodies]


# --- Signing ------------------------------------------------------------------------------------------------------


def _of_hints(options: Options, home: Path, stack: contextlib.ExitStack) -> dict[str, Callable[[], float]]:
    """Hints in a separate process, because signing is switched on for a whole process."""
    broker = started(stack, redis_server(home / "broker", free_port(), is_log=False, maxmemory="256mb"))
    folder = home / "signing"
    key, certificate = signing.create("bench", folder)
    plain = Settings(redis_url=broker.url, key_prefix="m12-plain:")
    signed = replace(
        plain, key_prefix="m12-signed:", signing_key_file=str(key), signing_cert_file=str(certificate),
        signing_cert_folder=str(certificate.parent),
    )  # fmt: skip
    count = 20 if options.quick else 500
    last: dict[str, tuple[float, float]] = {}

    def sent(name: str, settings: Settings) -> float:
        said = subprocess.run(
            [sys.executable, "-m", "checks.bench.hints", str(count)],
            env=environ_with(settings), capture_output=True, text=True, check=True, timeout=300,
        ).stdout  # fmt: skip
        send_seconds, take_seconds = map(float, said.split()[-2:])
        last[name] = (count / send_seconds, count / take_seconds)
        return last[name][0]

    return {
        "unsigned sent": lambda: sent("unsigned", plain),
        "unsigned taken": lambda: last["unsigned"][1],
        "signed sent": lambda: sent("signed", signed),
        "signed taken": lambda: last["signed"][1],
    }


# --- Copies -------------------------------------------------------------------------------------------------------


def _of_copies(options: Options, home: Path, stack: contextlib.ExitStack) -> dict[str, Callable[[], float]]:
    """Appends to a Redis with a replica. Both sync each write to disk."""
    master, replica = (
        started(stack, redis_server(home / name, free_port(), is_log=True, maxmemory="1gb"))
        for name in ("master", "replica")
    )
    _follow(replica, master)
    groups, singles = (5, 20) if options.quick else (150, 600)
    found: dict[str, Callable[[], float]] = {}
    for name, replicas in (("free", 0), ("waited", 1)):
        settings = Settings(
            event_log_url=master.url, key_prefix=f"m12-{name}:", log_replicas_min=replicas, append_seconds_max=5.0
        )
        for size, events, count in (("group", GROUP_EVENTS, groups), ("single", 1, singles)):
            found[f"{name} {size}"] = partial(_appends, settings, events, count)
    return found


def _follow(replica: Server, master: Server) -> None:
    with redis.Redis.from_url(replica.url) as client, redis.Redis.from_url(master.url) as asked:
        asked.config_set("repl-diskless-sync-delay", "0")
        client.execute_command("REPLICAOF", LOOPBACK, master.port)
        _await(lambda: asked.info("replication").get("slave0", {}).get("state") == "online", "the replica follows")


def _appends(settings: Settings, events: int, count: int) -> float:
    """Appends a second."""
    log = RedisStreamsLog(settings, lambda *_, **__: {})
    with contextlib.closing(log), redis.Redis.from_url(settings.event_log_url) as client:
        _await(lambda: _is_ready(log), "the log is ready")
        group = [(number % 4, RECORD) for number in range(events)]
        began = time.monotonic()
        for _ in range(count):
            log.append(group)
        seconds = time.monotonic() - began
        client.flushall()  # there is no drain here
    return count / seconds


def _is_ready(log: RedisStreamsLog) -> bool:
    try:
        log.prepare()
    except SluiceError:
        return False
    return True


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {WAIT_SECONDS_MAX:g} s: {what}")
        time.sleep(0.05)
