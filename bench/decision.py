"""One admission decision, leases included, against a Redis script for each request.

The lease is renewed from a real bucket while decisions are made, at the rate at which it gives tokens: the renewals'
cost, on both threads of the process, is in the figure.
"""

import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from ingest.admission import Admission
from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.metrics import IngestMetrics
from pipeline.settings import Settings
from stack.servers import free_port, redis_server

RATE = 10_000_000.0  # events/s: so many that decisions are never short of tokens for long
AT_ONCE = 1000  # decisions between two turns of the event loop, as a burst of requests would make them


async def _decide(settings: Settings, decisions: int) -> tuple[float, int]:
    """CPU-seconds of the process, and how many of the decisions were a yes."""
    admission = Admission(settings, wiring.make_bucket(settings), SystemClock(), IngestMetrics(CollectorRegistry()))
    admission.start(asyncio.get_running_loop())
    await admission.take(1)  # the first lease is there
    take_now = admission.take_now
    admitted = 0
    started = time.process_time()
    for _ in range(decisions // AT_ONCE):
        for _ in range(AT_ONCE):
            if not take_now(1):
                await admission.take(1)  # the lease is used up: this one waits for the next
            admitted += 1
        await asyncio.sleep(0)
    used = time.process_time() - started
    admission.close()
    return used, admitted


def _script(settings: Settings, calls: int) -> float:
    """CPU-seconds of this process for a call of the bucket's script a decision; the server's come on top."""
    bucket = wiring.make_bucket(settings)
    bucket.take(needed=1, wanted=1, process="bench")
    started = time.process_time()
    for _ in range(calls):
        bucket.take(needed=1, wanted=1, process="bench")
    return time.process_time() - started


def run(rounds: int, decisions: int) -> dict[str, Any]:
    """Measure and print; returns nanoseconds of CPU a decision."""
    leased: list[float] = []
    scripted: list[float] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = redis_server(Path(folder), free_port(), is_log=False, maxmemory="64mb")
        stack.callback(server.stop)
        server.start()
        settings = Settings(redis_url=server.url, rate_max=RATE, rate_min=RATE)
        for _ in range(rounds):
            used, admitted = uvloop.run(_decide(settings, decisions))
            leased.append(used / decisions * 1e9)
            shares.append(admitted / decisions)
            calls = max(1, decisions // 1000)
            scripted.append(_script(settings, calls) / calls * 1e9)
    nanoseconds, script = statistics.median(leased), statistics.median(scripted)
    print(f"\n{decisions:,} decisions a round, {rounds} rounds in turns; {statistics.median(shares):.1%} of them a yes")
    print(f"{'leases':24}{nanoseconds:>12,.0f} ns of CPU a decision   <= 500")
    print(f"{'a script a decision':24}{script:>12,.0f} ns of CPU, the server's not counted")
    print(f"\n{'script / leases':44}{script / nanoseconds:>8.0f}   reported")
    # Renewals come by time, not by decision: few decisions a second share the same number of them.
    renewals = 1 / settings.lease_seconds
    print(f"\nrenewing: {renewals:.0f} scripts a second at any rate, {renewals * script / 1e9:.2%} of a core; ", end="")
    print(f"at 1,000 events/s that is {renewals * script / 1000:,.0f} ns for each event more")
    return {"nanoseconds": nanoseconds, "script_nanoseconds": script}
