"""`./soak.sh`: many faults under traffic, and the verdict. Exit status: 0 kept, 1 broken, 2 not proven."""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from checks.soak import mutant
from checks.soak.arguments import parse
from checks.soak.catalog import FAULTS, possible_names, schedule
from checks.soak.mutants import MUTANTS
from checks.soak.report import as_markdown, write
from checks.soak.rig import Options, remove
from checks.soak.run import Verdict, run
from stack.servers import ServerError

# The time of a fault with its outage and recovery. The clients' pace depends on it.
FAULT_SECONDS = 7.5
EVENTS_PER_SECOND_MAX = 1500.0
EXIT_STATUSES = {Verdict.KEPT: 0, Verdict.BROKEN: 1, Verdict.NOT_PROVEN: 2}


def main(words: list[str]) -> int:
    asked = parse(words)
    if asked.list:
        print("\n".join(FAULTS))
        return 0
    if asked.mutants is not None:
        return mutant.main(asked.mutants, MUTANTS)
    names = [name for name in asked.only.split(",") if name]
    replicated = asked.topology == "replicated"
    unknown = set(names) - set(possible_names(asked.log, replicated=replicated, by_day=asked.by_day))
    if unknown:
        print(f"soak: no such fault on {asked.log} ({asked.topology}): {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    seed = int(time.time()) if asked.seed is None else asked.seed
    plan = schedule(asked.log, asked.faults, seed, names or None, replicated=replicated, by_day=asked.by_day)
    if asked.longest:
        plan = [replace(planned, share=1.0) for planned in plan]
    again = f"./soak.sh --faults {asked.faults} --events {asked.events} --seed {seed} --log {asked.log}"
    again += f" --topology {asked.topology}" if replicated else ""
    again += " --by-day" if asked.by_day else ""
    again += f" --only {asked.only}" if names else ""
    again += f" --rate {asked.rate:g}" if asked.rate else ""
    again += f" --trim {asked.trim}" if asked.trim else ""
    again += f" --drains {asked.drains}" if asked.drains else ""
    again += f" --kafka-client {asked.kafka_client}" if asked.kafka_client != Options.kafka_client else ""
    again += " --longest" if asked.longest else ""
    print(f"again with: {again}")
    if asked.plan:
        print("\n".join(str(planned) for planned in plan))
        return 0
    home = (asked.home or Path(tempfile.mkdtemp(prefix="sluice-soak-"))).resolve()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)  # PostgreSQL runs as another user and needs access to paths in it
    rate = asked.rate or min(EVENTS_PER_SECOND_MAX, max(50.0, asked.events / (asked.faults * FAULT_SECONDS)))
    trim = None if asked.trim is None else asked.trim == "on"
    options = Options(asked.log, home, seed, rate, asked.clients, asked.ingests, trim=trim, replicated=replicated)
    options = replace(
        options, by_day=asked.by_day, drains=asked.drains or options.drains, kafka_client=asked.kafka_client
    )
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    try:
        result = run(options, plan, events_min=asked.events, recovery_seconds_max=asked.recovery, tell=tell)
    except (ServerError, AssertionError) as error:
        print(f"soak: could not run: {error}; its files are in {home}", file=sys.stderr)
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
