"""`./soak.sh`: many faults under traffic, and the verdict. Exit status: 0 kept, 1 broken, 2 not proven."""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from checks.soak import mutant
from checks.soak.catalog import FAULTS, possible_names, schedule
from checks.soak.mutants import MUTANTS
from checks.soak.report import as_markdown, write
from checks.soak.rig import Options, remove
from checks.soak.run import HITS_SHARE_MIN, Verdict, run
from stack.servers import ServerError

# What a fault takes with its outage and recovery, from which the clients' pace follows.
FAULT_SECONDS = 7.5
EVENTS_PER_SECOND_MAX = 1500.0
EXIT_STATUSES = {Verdict.KEPT: 0, Verdict.BROKEN: 1, Verdict.NOT_PROVEN: 2}


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
    parser.add_argument("--only", default="", metavar="A,B", help="only these faults, in this order")
    parser.add_argument(
        "--trim", choices=("on", "off"), help="LOG_TRIM, of a log on Redis (default: on with odd seeds, off with even)"
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


def main(words: list[str]) -> int:
    asked = parse(words)
    if asked.list:
        print("\n".join(FAULTS))
        return 0
    if asked.mutants is not None:
        return mutant.main(asked.mutants, MUTANTS)
    names = [name for name in asked.only.split(",") if name]
    unknown = set(names) - set(possible_names(asked.log))
    if unknown:
        print(f"soak: no such fault on {asked.log}: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    seed = int(time.time()) if asked.seed is None else asked.seed
    plan = schedule(asked.log, asked.faults, seed, names or None)
    if asked.longest:
        plan = [replace(planned, share=1.0) for planned in plan]
    again = f"./soak.sh --faults {asked.faults} --events {asked.events} --seed {seed} --log {asked.log}"
    again += f" --only {asked.only}" if names else ""
    again += f" --rate {asked.rate:g}" if asked.rate else ""
    again += f" --trim {asked.trim}" if asked.trim else ""
    again += " --longest" if asked.longest else ""
    print(f"again with: {again}")
    if asked.plan:
        print("\n".join(str(planned) for planned in plan))
        return 0
    home = (asked.home or Path(tempfile.mkdtemp(prefix="sluice-soak-"))).resolve()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)  # PostgreSQL, as another user, passes through it
    rate = asked.rate or min(EVENTS_PER_SECOND_MAX, max(50.0, asked.events / (asked.faults * FAULT_SECONDS)))
    trim = None if asked.trim is None else asked.trim == "on"
    options = Options(asked.log, home, seed, rate, asked.clients, asked.ingests, trim=trim)
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    try:
        result = run(options, plan, events_min=asked.events, recovery_seconds_max=asked.recovery, tell=tell)
    except (ServerError, AssertionError) as error:
        print(f"soak: could not run, what there is is in {home}: {error}", file=sys.stderr)
        return 2
    path = write(result, asked.out)
    print(as_markdown(result))
    print(f"written to {path}")
    if result.verdict is Verdict.KEPT and asked.home is None:
        remove(home)
    else:
        print(f"history, logs and data are kept in {home}")
    return EXIT_STATUSES[result.verdict]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
