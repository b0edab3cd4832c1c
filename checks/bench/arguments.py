"""Measures Sluice against baselines of the same run, and prints one table of ratios with their goals.

examples:
  ./bench.sh                        all goals, M8 at reduced size; about half an hour
  ./bench.sh --only M1,M3 --rounds 5
  ./bench.sh --only M7 --log kafka
  ./bench.sh --only M11             what a record costs in each protocol; five minutes
  ./bench.sh --only M12             what keys, TLS, client certificates, signing and WAITAOF cost; five minutes
  ./bench.sh --only M1,M2,M7,M8,M13 --json FILE   what `python -m checks.sizing --bench FILE` needs
  ./bench.sh --only M14             ingest beside an OpenTelemetry Collector; needs Go, so it must be named
  ./bench.sh --only M15             KAFKA_CLIENT=confluent beside kafka-python; needs Java, so it must be named
  ./bench.sh --only M5,M6,M9,M10 --arms drain-time --step-runs 5
  ./bench.sh --only M8 --full       the goal's own sizes: 5 million stored, a backlog of 2 million
  ./bench.sh --only M7,M8 --by-day --full   partitions by day beside one table, 5 million stored in each; six minutes
  ./bench.sh --quick --only M3      seconds; to see that it works, its figures mean nothing
  .venv/bin/python -m checks.bench.backlog   a backlog on a running system
"""

# The command line of `./bench.sh`. It needs no package, so `--help` works before anything is installed.
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MARKS: Final = ("M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9", "M10", "M11", "M12", "M13", "M14", "M15")
# A plain run omits these: they need a program that most machines do not have.
NAMED_ONLY: Final = frozenset({"M14", "M15"})  # a Go compiler; Java and confluent-kafka
OVERLOAD_MARKS: Final = ("M5", "M6", "M9", "M10")  # on a whole system, under overload
# The same as in checks.bench.overload, which --help does not import.
ARM_WORDS: Final = ("off", "static", "bands", "bands-high", "drain-time")


def marks_of(text: str) -> list[str]:
    """The marks of a list like `M1,m3`, in order. Raises argparse.ArgumentTypeError."""
    wanted = {word.strip().upper() for word in text.split(",") if word.strip()}
    unknown = sorted(wanted - set(MARKS))
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is none of {', '.join(MARKS)}")
    return [mark for mark in MARKS if mark in wanted]


def arms_of(text: str) -> tuple[str, ...]:
    """The arms of a list like `bands,drain-time`. Raises argparse.ArgumentTypeError."""
    wanted = {word.strip() for word in text.split(",") if word.strip()}
    unknown = sorted(wanted - set(ARM_WORDS))
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is none of {', '.join(ARM_WORDS)}")
    return tuple(word for word in ARM_WORDS if word in wanted)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("from 1 to 100")
    return value


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./bench.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=marks_of, default=[mark for mark in MARKS if mark not in NAMED_ONLY], metavar="M1,M3",
        help="run only these goals (default: all but M14 and M15)",
    )  # fmt: skip
    parser.add_argument(
        "--log", choices=("redis", "kafka"), default="redis", help="the event log (no effect on M3, M15)"
    )
    parser.add_argument(
        "--rounds", type=_count, metavar="N", help="rounds of M1 to M4, M7, M8, M11, M12, M14 and M15 (5; --quick 1)"
    )
    parser.add_argument(
        "--by-day",
        action="store_true",
        help="M7, M8: log_events is partitioned by day (EVENTS_BY_DAY), and compared with one table",
    )
    overload = parser.add_argument_group("M5, M6, M9, M10: a whole system under overload")
    overload.add_argument(
        "--arms", type=arms_of, default=(), metavar="bands,drain-time",
        help=f"ways to limit the rate, of {', '.join(ARM_WORDS)} (default: all except bands-high)",
    )  # fmt: skip
    overload.add_argument(
        "--overload-rounds", type=_count, default=1, metavar="N", help="rounds; each starts every system again (1)"
    )
    overload.add_argument(
        "--step-runs", type=_count, default=10, metavar="N", help="runs of M6 with drain_time, in all rounds (10)"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a short trial: its figures mean nothing")
    size.add_argument("--full", action="store_true", help="M8 with the sizes of the goal; by day, 5 million stored")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all figures, with those of each round")
    return parser.parse_args(words)


if __name__ == "__main__":
    arguments_of(sys.argv[1:])
