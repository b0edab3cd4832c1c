"""The command line of `./soak.sh`. It needs no package, so that `--help` answers before anything is installed."""

import argparse
import sys
from pathlib import Path

# This share of the faults that this machine can make must have taken effect; otherwise the run tried too little to be
# proof. Runs on a busy machine had 98 % and more.
HITS_SHARE_MIN = 0.9


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./soak.sh",
        description="Start servers and Sluice in a folder of their own, make faults under traffic, and judge the "
        "result by the history of all answers to clients. The same seed makes the same faults in the same order.",
        epilog="If this machine lacks what a fault needs, the fault is left out, and the report says so: shifted "
        "clocks need Debian's libfaketime, a full disk needs root and tmpfs, Kafka needs Java 17 and Maven. Exit "
        "status: 0 every promise was kept; 1 a promise was broken; 2 nothing is proven: the run failed, fewer than "
        f"{HITS_SHARE_MIN:.0%} of the other faults took effect, or fewer events were sent than "
        "requested.",
    )
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="number of faults (default 60)")
    parser.add_argument(
        "--events", type=int, default=200_000, metavar="M", help="lowest number of events (default 200,000)"
    )
    parser.add_argument(
        "--seed", type=int, default=None, metavar="S", help="seed of schedule and traffic (default: random)"
    )
    parser.add_argument("--log", choices=("redis", "kafka"), default="redis", help="event log (default redis)")
    parser.add_argument(
        "--kafka-client",
        choices=("kafka-python", "confluent"),
        default="kafka-python",
        help="KAFKA_CLIENT of a log on Kafka (default kafka-python)",
    )
    parser.add_argument(
        "--topology",
        choices=("single", "replicated"),
        default="single",
        help="replicated: PostgreSQL has a synchronous standby, and the log a replica (Redis, LOG_REPLICAS_MIN=1) or "
        "three brokers (Kafka, KAFKA_REPLICATION=3), which take the place of the first (default single)",
    )
    parser.add_argument(
        "--by-day",
        action="store_true",
        help="EVENTS_BY_DAY: log_events is partitioned. Without the fault worker.old, which is refused by such a table",
    )
    parser.add_argument("--only", default="", metavar="A,B", help="only these faults, in this order")
    parser.add_argument(
        "--trim", choices=("on", "off"), help="LOG_TRIM, of a log on Redis (default: on with odd seeds, off with even)"
    )
    parser.add_argument(
        "--drains", type=int, help="DRAINS_MAX: with fewer than 4, drains take partitions in turn (default: 8)"
    )
    parser.add_argument("--clients", type=int, default=2, help="client processes (default 2)")
    parser.add_argument("--ingests", type=int, default=2, help="ingest processes (default 2)")
    parser.add_argument("--rate", type=float, help="events/s that clients offer (default: from faults and events)")
    parser.add_argument("--recovery", type=float, default=60.0, help="seconds allowed after a repair (default 60)")
    parser.add_argument("--out", type=Path, default=Path("soak-results"), help="folder for the results")
    parser.add_argument("--home", type=Path, help="folder for servers and history (default: a new temporary folder)")
    parser.add_argument("--list", action="store_true", help="list all faults")
    parser.add_argument("--plan", action="store_true", help="print the schedule, and exit")
    parser.add_argument("--longest", action="store_true", help="each fault lasts for its longest time")
    parser.add_argument(
        "--mutants", nargs="*", metavar="NAME", help="break a copy of the code, and check that the harness finds it"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    parse(sys.argv[1:])
