"""The command line of `python -m checks.sizing`. It needs no package, so that `--help` answers before installation."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

RATE_MAX = 100_000_000
SIZE_MAX = 64 << 20


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text.replace(",", "").replace("_", ""))
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"from {low:g} to {high:g}")
        return value

    return number


def _whole(low: int, high: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text.replace(",", "").replace("_", ""))
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"from {low} to {high}")
        return value

    return whole


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m checks.sizing",
        description="Compute from measured costs what a rate of events takes. Nothing is measured here, and nothing "
        "above some thousand events/s was ever run: docs/sizing.md has the assumptions.",
        epilog="examples:  python -m checks.sizing --rate 10000 --size 500;  ./bench.sh --only M1,M2,M7,M8,M13 "
        "--json mine.json && python -m checks.sizing --rate 10000 --bench mine.json",
    )
    parser.add_argument("--rate", type=_number(1, RATE_MAX), default=10_000.0, help="events/s (default 10,000)")
    parser.add_argument("--size", type=_whole(1, SIZE_MAX), default=300, help="bytes of an event's JSON (default 300)")
    parser.add_argument("--body", type=_whole(1, 100_000), default=100, help="events in a request (default 100)")
    parser.add_argument("--log", choices=("redis", "kafka"), default="redis", help="event log (default redis)")
    parser.add_argument("--copies", type=_whole(1, 9), default=1, help="copies of the event log (default 1)")
    parser.add_argument(
        "--outage", type=_number(0, 100_000), default=30.0, metavar="MINUTES",
        help="how long the event log holds all events while PostgreSQL is away (default 30)",
    )  # fmt: skip
    parser.add_argument(
        "--busy", type=_number(0.05, 1), default=0.5, help="share of a core that may be used at this rate (default 0.5)"
    )
    parser.add_argument(
        "--postgres-cores", type=_whole(1, 1000), default=8,
        help="cores that one PostgreSQL can use for storing (default 8)",
    )  # fmt: skip
    parser.add_argument(
        "--bench", type=Path, action="append", default=[], metavar="FILE",
        help="costs of your machine: JSON of ./bench.sh --json; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    maintenance = parser.add_argument_group("for developers")
    maintenance.add_argument(
        "--save", type=Path, metavar="FILE", help="write the costs of --bench for this log, or those of --idle"
    )
    maintenance.add_argument("--idle", type=Path, metavar="FILE", help="JSON of python -m checks.idle, to --save")
    maintenance.add_argument("--write", type=Path, metavar="PAGE", help="write the tables of docs/sizing.md again")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse(sys.argv[1:])
