"""`python -m checks.sizing`: what a rate of events takes (docs/sizing.md)."""

import sys

from checks.sizing.arguments import parse


def main() -> int:
    """Compute and print; returns the exit status."""
    asked = parse(sys.argv[1:])
    # Imported late: --help needs no package.
    import dataclasses  # noqa: PLC0415
    import json  # noqa: PLC0415

    from checks.sizing.costs import MEASURED, CostsError, of_bench, of_repository, save, save_idle  # noqa: PLC0415
    from checks.sizing.estimate import Given, estimate  # noqa: PLC0415
    from checks.sizing.text import table, with_tables  # noqa: PLC0415

    if asked.write is not None:
        page = with_tables(asked.write.read_text(encoding="utf-8"), of_repository("redis"), of_repository("kafka"))
        asked.write.write_text(page, encoding="utf-8")
        return 0
    try:
        if asked.idle is not None:
            save_idle(asked.idle, asked.save or MEASURED)
            return 0
        costs = of_bench(asked.bench, asked.log) if asked.bench else of_repository(asked.log)
    except CostsError as error:
        print(f"checks.sizing: {error}", file=sys.stderr)
        return 1
    if asked.save is not None:
        save(costs, asked.save)
        return 0
    given = Given(
        rate=asked.rate, size=asked.size, body=asked.body, copies=asked.copies, outage_minutes=asked.outage,
        busy=asked.busy, postgres_cores=asked.postgres_cores,
    )  # fmt: skip
    found = estimate(given, costs)
    if asked.json:
        print(
            json.dumps(
                {
                    "given": dataclasses.asdict(given),
                    "estimate": dataclasses.asdict(found),
                    "costs": dataclasses.asdict(costs),
                },
                indent=1,
            )
        )
    else:
        print(table(given, found, costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
