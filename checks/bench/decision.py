"""M3: one admission decision, leases included, against rate limiter libraries and a Redis script for each request.

The figure is the CPU of this process and of the Redis server together. During the decisions, leases are renewed from a
real bucket as often as at any load (33 times a second). The figure includes the renewals, on both threads and in the
server. The libraries run on their memory storage, which limits one process only, and on their Redis storage, which does
the bucket's job. Over-admission is measured on several Admission objects. Each has its own connection, and their demand
is eight times the rate.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import uvloop
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
from prometheus_client import CollectorRegistry
from throttled import RateLimiterType, Throttled, per_sec
from throttled.store import MemoryStore, RedisStore

from checks.bench.machine import LOAD_CORE, SERVER_CORE, Options, run_anywhere, run_on, started
from checks.bench.process import cpu_seconds, own_cpu_seconds
from checks.bench.table import Line, at_least, at_most
from ingest.accounts import Accounts
from ingest.admission import Admission
from ingest.entrance import Entrance
from ingest.errors import RateLimitedError
from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.metrics import IngestMetrics
from pipeline.names import Level
from pipeline.settings import Settings
from stack.servers import free_port, redis_server

RATE: Final = 10_000_000.0  # events/s: enough that decisions never lack tokens for long
AT_ONCE: Final = 1000  # decisions between two turns of the event loop, as in a burst of requests
RATE_LIMITED: Final = 2000.0  # events/s, to measure over-admission
DEMAND: Final = 8  # times RATE_LIMITED
PROCESSES: Final = 4
NAME: Final = "bench"
ACCOUNT: Final = "192.0.2.1"


def run(options: Options, _marks: set[str]) -> list[Line]:
    """Measure and return the lines."""
    run_on(LOAD_CORE)  # for the server
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            server = started(stack, redis_server(Path(folder), free_port(), is_log=False, maxmemory="64mb"))
            run_on(SERVER_CORE)
            return _measured(options, server.url, server.pid)
    finally:
        run_anywhere()


def _measured(options: Options, url: str, server_pid: int) -> list[Line]:
    decisions = 200_000 if options.quick else 3_000_000
    settings = Settings(redis_url=url, rate_max=RATE, rate_min=RATE, key_prefix="m3:")
    with_levels = replace(settings, key_prefix="m3-levels:", admission_levels=True)
    with_both = replace(with_levels, key_prefix="m3-both:", admission_shares=True)
    held = replace(with_both, key_prefix="m3-held:", account_limits=f"{ACCOUNT}={RATE:.0f}", ingest_processes_max=1)
    bucket = wiring.make_bucket(settings)
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "a Redis script a request": (
            decisions // 300,
            lambda: bucket.take(needed=1, wanted=1, process=NAME),
        ),
        **_libraries(url, decisions),
    }
    taken: dict[str, list[float]] = {}
    shares: list[float] = []
    by_level: list[float] = []
    by_both: list[float] = []
    of_held: list[float] = []
    excess: list[float] = []
    for _ in range(options.rounds):
        cost, share = _leased(settings, decisions, server_pid)
        taken.setdefault("leases", []).append(cost)
        shares.append(share)
        by_level.append(_leased(with_levels, decisions, server_pid)[0])
        by_both.append(_leased(with_both, decisions, server_pid)[0])
        of_held.append(_leased(held, decisions // 10, server_pid)[0])
        for name, (count, call) in calls.items():
            taken.setdefault(name, []).append(_called(call, count, server_pid))
        excess.append(_over_admission(url, 1.0 if options.quick else 3.0))
    leased = taken["leases"]
    figures: dict[str, Any] = {"admitted_share": shares, "decisions_a_round": decisions}
    lines = [Line("M3", "one decision on leases", leased, at_most(150), unit="ns", figures=figures)]
    for what, with_them, goal in (
        ("with levels", by_level, at_most(1.8)),
        ("with levels and shares", by_both, at_most(1.8)),
        ("about an account above its share", of_held, None),
    ):
        values = [on / off for on, off in zip(with_them, leased, strict=True)]
        title = f"one decision {what} / one without"
        lines.append(Line("M3", title, values, goal, unit="x", figures={"nanoseconds": with_them}))
    for name in calls:
        values = [other / ours for other, ours in zip(taken[name], leased, strict=True)]
        goal = at_least(500) if name == "a Redis script a request" else None
        lines.append(Line("M3", f"{name} / leases", values, goal, unit="x", figures={"nanoseconds": taken[name]}))
    what = f"over-admission of {PROCESSES} processes beyond burst and leases, {DEMAND} x demand"
    return [*lines, Line("M3", what, excess, at_most(1), unit="%")]


def _libraries(url: str, decisions: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Other libraries: how many decisions to make, and a function that makes one."""
    item = RateLimitItemPerSecond(int(RATE))
    in_memory = SlidingWindowCounterRateLimiter(MemoryStorage())
    in_redis = SlidingWindowCounterRateLimiter(RedisStorage(url))
    log_in_memory = MovingWindowRateLimiter(MemoryStorage())
    log_item = RateLimitItemPerSecond(1000)  # a list of that many times
    quota = per_sec(int(RATE), burst=int(RATE))
    token_bucket = RateLimiterType.TOKEN_BUCKET.value
    throttled_memory = Throttled(key=NAME, using=token_bucket, quota=quota, store=MemoryStore())
    throttled_redis = Throttled(key=NAME, using=token_bucket, quota=quota, store=RedisStore(server=url))
    few, many = decisions // 600, decisions // 60
    return {
        "limits, in memory (sliding window counter)": (many, lambda: in_memory.hit(item, NAME)),
        "limits, in memory (moving window)": (many, lambda: log_in_memory.hit(log_item, NAME)),
        "limits, on Redis": (few, lambda: in_redis.hit(item, NAME)),
        "throttled-py, in memory (token bucket)": (many, throttled_memory.limit),
        "throttled-py, on Redis": (few, throttled_redis.limit),
    }


def _called(call: Callable[[], object], count: int, server_pid: int) -> float:
    """Nanoseconds of CPU of a call, the server's included."""
    call()
    cpu, server = own_cpu_seconds(), cpu_seconds(server_pid)
    for _ in range(count):
        call()
    return (own_cpu_seconds() - cpu + cpu_seconds(server_pid) - server) / count * 1e9


def _leased(settings: Settings, decisions: int, server_pid: int) -> tuple[float, float]:
    """Nanoseconds of CPU of a decision on leases, the server's included, and the share of decisions that admitted."""
    cpu, server = own_cpu_seconds(), cpu_seconds(server_pid)
    admitted = uvloop.run(_decide(settings, decisions))
    used = own_cpu_seconds() - cpu + cpu_seconds(server_pid) - server
    return used / decisions * 1e9, admitted / decisions


def _admission(settings: Settings) -> Admission:
    return Admission(settings, wiring.make_bucket(settings), SystemClock(), IngestMetrics(CollectorRegistry()))


async def _decide(settings: Settings, decisions: int) -> int:
    """Make decisions as fast as possible. Returns how many admitted."""
    admission = _admission(settings)
    admission.start(asyncio.get_running_loop())
    await admission.take(1)  # the first lease is there
    if settings.admission_levels:
        admitted = await _decide_by_level(admission, settings, decisions)
        admission.close()
        return admitted
    take_now = admission.take_now
    admitted = 0
    for _ in range(decisions // AT_ONCE):
        for _ in range(AT_ONCE):
            if not take_now(1):
                await admission.take(1)  # the lease is used up: wait for the next one
            admitted += 1
        await asyncio.sleep(0)
    admission.close()
    return admitted


async def _decide_by_level(admission: Admission, settings: Settings, decisions: int) -> int:
    """The same for bodies of INFO, which leave a reserve in the bucket. They are counted for one account."""
    level = Level.INFO
    accounts = Accounts(settings, SystemClock())
    tally = accounts.enter(ACCOUNT)  # as the connection keeps it
    entrance = Entrance(admission, accounts, has_levels=True)
    admit_now = entrance.admit_now
    admitted = 0
    for _ in range(decisions // AT_ONCE):
        for _ in range(AT_ONCE):
            if not admit_now(tally, 1, level):
                try:
                    await entrance.admit(tally, 1, level)
                except RateLimitedError:
                    continue
            admitted += 1
        await asyncio.sleep(0)
    return admitted


def _over_admission(url: str, seconds: float) -> float:
    """Percent of the rate's integral that was admitted beyond that integral, one burst, and one lease per process."""
    settings = Settings(
        redis_url=url, rate_max=RATE_LIMITED, rate_min=RATE_LIMITED, key_prefix=f"m3-{os.urandom(4).hex()}:"
    )
    admitted, elapsed = uvloop.run(_press(settings, seconds))
    lease = int(RATE_LIMITED * settings.lease_seconds)
    allowed = RATE_LIMITED * elapsed + RATE_LIMITED * settings.burst_seconds + PROCESSES * lease
    return max(0.0, (admitted - allowed) / (RATE_LIMITED * elapsed) * 100)


async def _press(settings: Settings, seconds: float) -> tuple[int, float]:
    """Offer far more than the rate to several Admission objects. Returns the admitted events and the seconds."""
    admissions = [_admission(settings) for _ in range(PROCESSES)]
    loop = asyncio.get_running_loop()
    for one in admissions:
        one.start(loop)
    started_at = time.monotonic()

    async def press(admission: Admission) -> int:
        admitted = 0
        due = time.monotonic()
        while (now := time.monotonic()) < started_at + seconds:
            while due <= now:
                due += PROCESSES / (RATE_LIMITED * DEMAND)
                if not admission.take_now(1):
                    with contextlib.suppress(RateLimitedError):
                        await admission.take(1)
                        admitted += 1
                else:
                    admitted += 1
            await asyncio.sleep(0.001)
        return admitted

    counts = await asyncio.gather(*(press(one) for one in admissions))
    elapsed = time.monotonic() - started_at
    for one in admissions:
        one.close()
    return sum(counts), elapsed
