"""`python -m bench edge|decision|drain`: prints ratios, each against a baseline of the same run."""

import argparse

from bench import backlog, decision, drain, edge


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("edge", help="CPU of ingest for single events, batches and refusals")
    one.add_argument("--log", choices=("redis", "kafka"), default="redis")
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--seconds", type=float, default=3.0, help="of load, for each figure and round")
    one = commands.add_parser("drain", help="rows/s stored exactly once")
    one.add_argument("--log", choices=("redis", "kafka"), default="redis")
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--rows", type=int, default=100_000)
    one = commands.add_parser("decision", help="one admission decision, leases included")
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--decisions", type=int, default=2_000_000)
    one = commands.add_parser("backlog", help="a worker stops: lag, rate and health until it has caught up")
    one.add_argument("--log", choices=("redis", "kafka"), default="redis")
    arguments = parser.parse_args()
    match arguments.command:
        case "edge":
            edge.run(arguments.log, arguments.rounds, arguments.seconds)
        case "drain":
            drain.run(arguments.log, arguments.rounds, arguments.rows)
        case "backlog":
            backlog.run(arguments.log)
        case "decision":
            decision.run(arguments.rounds, arguments.decisions)


if __name__ == "__main__":
    main()
