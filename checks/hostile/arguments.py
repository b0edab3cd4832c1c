"""The command line of `./hostile.sh`. It needs no package, so that `--help` answers before anything is installed."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PARTS: Final = ("fuzz", "cases", "contract", "floods")
_EXAMPLES = """\
parts:
  fuzz      a coverage-guided fuzzer on the decoders of bodies, gzip and heads, from the corpus that is kept
  cases     JSON at the edges of RFC 8259, and that corpus, by HTTP
  contract  requests made from the OpenAPI document by schemathesis; every answer is held against it
  floods    500 idle and 200 trickling connections, and bodies that are hard to read, beside a normal load
            whose p99 must not suffer; the memory of every process is watched

examples:
  ./hostile.sh                                     all of it, about 45 minutes on two cores
  ./hostile.sh --short                             all of it, a little of each, about 4 minutes
  ./hostile.sh --only contract --cases 5000        one part
  ./hostile.sh --only fuzz --fuzz-seconds 3600 --keep-corpus
                                                   look for more, and keep the inputs that reach it
  ./hostile.sh --seed 7                            the same requests and the same fuzzing again

Everything listens on the loopback address only. Exit status: 0 held, 1 broken, 2 could not run.
"""


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    seed: int
    parts: tuple[str, ...] = PARTS
    cases: int = 20_000
    fuzz_seconds: int = 600
    attack_seconds: float = 600.0
    processes: int = 2  # of schemathesis and of the fuzzer


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./hostile.sh",
        description="Start Sluice on servers of its own in a temporary folder, send it hostile input of every kind,\n"
        "and judge it: no 5xx but 503, no growth of memory, no process that ends, no wrong answer.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Plan(0)
    parser.add_argument("--short", action="store_true", help="run a small share of each part")
    parser.add_argument("--only", default="", metavar="A,B", help=f"only these parts: {','.join(PARTS)}")
    parser.add_argument("--cases", type=int, metavar="N", help=f"requests of schemathesis (default {usual.cases:,})")
    parser.add_argument(
        "--fuzz-seconds", type=int, metavar="S", help=f"how long each fuzzer runs (default {usual.fuzz_seconds})"
    )
    parser.add_argument(
        "--attack-seconds", type=float, metavar="S", help=f"how long floods last (default {usual.attack_seconds:.0f})"
    )
    parser.add_argument(
        "--processes", type=int, default=usual.processes, metavar="N",
        help=f"processes of schemathesis, and of the fuzzer (default {usual.processes})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="S", help="seed of requests and fuzzer (default: random)")
    parser.add_argument(
        "--keep-corpus", action="store_true", help="replace tests/hostile/corpus by the inputs that the fuzzer found"
    )
    parser.add_argument("--out", type=Path, default=Path("hostile-results"), metavar="DIR", help="folder of the report")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse(sys.argv[1:])
