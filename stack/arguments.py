"""The command line of `./run.sh`, and of the commands of `sluice` that it shares.

It needs no package, so that `--help` answers before anything is installed.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

_EXAMPLES: Final = (
    ("{up}", "everything in the foreground, event log on Redis Streams; Ctrl-C stops it"),
    ("{up} --log kafka", "the same on Apache Kafka (Java 17 and Maven)"),
    ("{up} --policy drain-time", "the admitted rate follows what PostgreSQL stores, not the lag in events"),
    ("INGEST_PROCESSES=2 {up}", "two ingest processes on one port"),
    ("{up} --detach", "return when everything is ready"),
    ('eval "$({env})"', "addresses of the running system into the shell"),
    ("SLUICE_HOME=/tmp/b PORT_BASE=18100 {up}", "a second system beside the first"),
)
_SURROUNDINGS: Final = """\
servers of your own: DATABASE_URL, REDIS_URL, EVENT_LOG_URL, KAFKA_BOOTSTRAP_SERVERS
addresses: INGEST_HOST 127.0.0.1, OPERATOR_HOST 127.0.0.1 (of OPERATOR_PORT), FLOWER_HOST 127.0.0.1; private servers
       listen on the loopback address only
ports: INGEST_PORT 8080, OPERATOR_PORT (the live page's; without it, INGEST_PORT has it: docs/operators.md),
       FLOWER_PORT 5555, POSTGRES_PORT 5433, REDIS_PORT 6381, LOG_REDIS_PORT 6382, KAFKA_PORT 9093,
       KAFKA_CONTROLLER_PORT 9094, PROMETHEUS_PORT 9090, DOCS_PORT 8000 (of sluice docs); metrics:
       CONTROL_METRICS_PORT 9111, BATCHES_METRICS_PORT 9112, INGEST_METRICS_PORT 9101 and up (of several ingest
       processes, or with OPERATOR_PORT or _PASSWORD)
       PORT_BASE moves all that are not set: INGEST_PORT is PORT_BASE, and the others follow it; DOCS_PORT is 74 above
Prometheus runs too where this machine has it: PROMETHEUS=no for none, =yes to insist; it scrapes every
       PROMETHEUS_SECONDS 5
folder of data and logs: SLUICE_HOME {home}
"""


def epilog(*, up: str, env: str, home: str) -> str:
    """Examples and variables, below the options of a start."""
    examples = [(words.format(up=up, env=env), what) for words, what in _EXAMPLES]
    lines = [f"  {words:<44} {what}" for words, what in examples]
    return "\n".join(["examples:", *lines, "", _SURROUNDINGS.format(home=home)])


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of `./run.sh`: without a command it starts."""
    parser = argparse.ArgumentParser(
        prog="./run.sh",
        description="Run Sluice on this machine: no root, no Docker, no system service.",
        epilog=epilog(up="./run.sh", env="./run.sh env", home=".local/system"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command")
    # The options of `up`, which are also valid without it. Neither place sets a default if they are missing.
    for starter in (parser, commands.add_parser("up", help="start (the default)")):
        add_up_options(starter)
    commands.add_parser("stop", help="stop the system")
    commands.add_parser("status", help="show its programs; exit status 1 if one does not run")
    commands.add_parser("env", help="print its addresses, for the shell")
    add_log_name(commands.add_parser("logs", help="follow a program's log"), "./run.sh status")
    clean = commands.add_parser("clean", help="delete the data")
    clean.add_argument("--yes", action="store_true", help="do not wait for a confirmation")
    parser.set_defaults(log=None, policy=None, detach=False, command="up")
    return parser.parse_args(words)


def add_up_options(parser: argparse.ArgumentParser) -> None:
    """The options of a start."""
    parser.add_argument(
        "--log",
        choices=("redis", "kafka"),
        default=argparse.SUPPRESS,
        help="the event log (default: as last time, or redis)",
    )
    parser.add_argument(
        "--policy",
        choices=("bands", "drain-time"),
        default=argparse.SUPPRESS,
        help="the rate policy (default: RATE_POLICY, or bands)",
    )
    parser.add_argument(
        "--detach", action="store_true", default=argparse.SUPPRESS, help="return once everything is ready"
    )


def add_log_name(parser: argparse.ArgumentParser, listing: str) -> None:
    """The argument of `logs`; `listing` is the command that shows the names."""
    parser.add_argument("name", nargs="?", help=f"a name from {listing} (default: all)")


if __name__ == "__main__":
    parse(sys.argv[1:])
