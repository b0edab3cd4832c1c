"""`python -m checks.bench.mixed_bodies`: bodies of 1, 20, 100, 512 and 1,000 events side by side, on a real system.

As many events of each size are offered, together twice what is admitted. Bodies become due at random moments
(Poisson). A refused one comes back once, after its Retry-After. The figure is what a size got of its max-min share:
a fifth of all that was admitted, since each size offers more than that. PostgreSQL stores 1,500 events/s, and
`drain_time` must find that; with `--rate`, an operator has set the rate, for example to RATE_MIN.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec

from checks.bench.held import SINK_RATE, Held, held_system
from checks.loadgen.closed_load import an_event
from pipeline.policies import drain_time
from stack.servers import LOOPBACK

SIZES: Final = (1, 20, 100, 512, 1000)
GOAL: Final = 0.8  # of the max-min share
_OVERLOAD: Final = 2
_SETTLED_SECONDS: Final = 30.0  # before bodies are counted
_ANSWER_SECONDS_MAX: Final = 60.0


@dataclass(slots=True)
class Got:
    """What became of the bodies of one size that were due in the counted time."""

    offered: int = 0  # bodies
    admitted: int = 0  # bodies
    retried: int = 0  # bodies that came back
    failed: int = 0  # answers other than 202 and 429


def shares(found: Mapping[int, Got]) -> dict[int, float]:
    """What each size got of its max-min share; every size offers more than this share."""
    events = {size: size * got.admitted for size, got in found.items()}
    fair = sum(events.values()) / len(events)
    return {size: count / fair if fair else 0.0 for size, count in events.items()}


async def offer_mixed(port: int, rate: float, seconds: float, *, seed: int, skip: float) -> dict[int, Got]:
    """Offer `rate` events/s in bodies of all sizes for `seconds`. Bodies of the first `skip` seconds do not count."""
    found = {size: Got() for size in SIZES}
    drawn = random.Random(seed)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS_MAX)
    async with (
        aiohttp.ClientSession(f"http://{LOOPBACK}:{port}", connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        for size in SIZES:
            arrivals = _Arrivals(session, size, random.Random(drawn.random()))
            group.create_task(arrivals.run(rate / len(SIZES), seconds, skip, found[size]))
    return found


class _Arrivals:
    """The bodies of one size."""

    def __init__(self, session: aiohttp.ClientSession, size: int, drawn: random.Random) -> None:
        self._session = session
        self._size = size
        self._drawn = drawn
        self._body = msgspec.json.encode([an_event(number) for number in range(size)])

    async def run(self, rate: float, seconds: float, skip: float, got: Got) -> None:
        """Send bodies at `rate` events/s, each in a task of its own, and wait for the last answers."""
        begin = due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while (due := due + self._drawn.expovariate(rate / self._size)) < begin + seconds:
                await asyncio.sleep(due - time.monotonic())
                group.create_task(self._send(got if due - begin >= skip else Got()))

    async def _send(self, got: Got) -> None:
        got.offered += 1
        for is_last in (False, True):
            async with self._session.post(
                "/api/logs", data=self._body, headers={"Content-Type": "application/json"}
            ) as answer:
                await answer.read()
            if answer.status == 202:
                got.admitted += 1
                return
            if answer.status != 429:
                got.failed += 1
                return
            if not is_last:
                got.retried += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))


def table(found: Mapping[int, Got]) -> list[str]:
    """Markdown: a line for each size."""
    lines = ["| events a body | offered | came back | admitted | of its share |", "|---:|---:|---:|---:|---:|"]
    for size, share in shares(found).items():
        got = found[size]
        lines.append(f"| {size:,} | {got.offered:,} | {got.retried:,} | {got.admitted:,} | {share:.2f} |")
    return lines


def _measure(held: Held, asked: argparse.Namespace) -> dict[int, Got]:
    if asked.rate is not None:
        held.limit(asked.rate)
    rate = _OVERLOAD * (asked.rate or SINK_RATE)
    skip = 0.0 if asked.rate is not None else _SETTLED_SECONDS  # a set rate holds at once
    return asyncio.run(offer_mixed(held.port, rate, skip + asked.seconds, seed=asked.seed, skip=skip))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table. Returns 0 if each size got its share, else 1."""
    parser = argparse.ArgumentParser(prog="python -m checks.bench.mixed_bodies", description=__doc__)
    parser.add_argument("--rate", type=float, help="events/s, set by an operator (default: the policy decides)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of load that is counted (120)")
    parser.add_argument("--log", choices=("redis", "kafka"), default="redis")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals (0)")
    asked = parser.parse_args(arguments)
    with held_system(asked.log, drain_time.NAME) as held:
        found = _measure(held, asked)
    print("\n".join(table(found)))
    failed = sum(got.failed for got in found.values())
    if failed:
        print(f"{failed} answers were neither 202 nor 429")
    return 0 if not failed and min(shares(found).values()) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
