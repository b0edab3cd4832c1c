"""An estimate in words, and the tables of docs/sizing.md."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from checks.sizing.costs import BATCH_EVENTS, Costs
from checks.sizing.estimate import Estimate, Given, estimate, ingest_us

PAGE_RATES: Final = (1_000, 10_000, 100_000, 1_000_000)
_COMMAND: Final = "python -m checks.sizing --write docs/sizing.md"


def number(value: float) -> str:
    """Two significant digits, or a whole number."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.2g}"


def size(value: float) -> str:
    """Bytes in the largest unit, of 1,000."""
    units = ["bytes", "KB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:,.0f} {units[0]}"


_ROWS: Final[tuple[tuple[str, Callable[[Estimate], str]], ...]] = (
    ("systems beside each other", lambda one: f"{one.systems:,}"),
    ("limited by", lambda one: one.limited_by or "-"),
    ("events/s of each system", lambda one: f"{one.rate:,.0f}"),
    ("ingest: processes", lambda one: f"{one.ingest_processes:,}"),
    ("ingest: cores that are used", lambda one: number(one.ingest_cores)),
    ("network into ingest, a second", lambda one: size(one.network_bytes)),
    ("event log: cores that are used, all copies", lambda one: number(one.log_cores)),
    ("event log: bytes after the outage, all copies", lambda one: size(one.log_bytes)),
    ("`LOG_PARTITIONS`, at least", lambda one: str(one.partitions)),
    ("`DRAINS_MAX`, at least", lambda one: str(one.drains_max)),
    ("worker processes: batches + control", lambda one: f"{one.batch_processes} + {one.control_processes}"),
    ("drains: cores that are used", lambda one: number(one.drain_cores)),
    ("PostgreSQL: sessions", lambda one: str(one.sessions)),
    ("PostgreSQL: cores that are used for storing", lambda one: number(one.postgres_cores)),
    ("PostgreSQL: disk, a day", lambda one: size(one.disk_bytes_a_day)),
    ("control Redis: commands a second, at most", lambda one: number(one.control_commands)),
)


def table(given: Given, one: Estimate, costs: Costs) -> str:
    """An estimate for a terminal."""
    head = (
        f"{given.rate:,.0f} events/s of {given.size:,} bytes, {given.body} in a request; event log: {costs.log}, "
        f"{given.copies} copies; outage {given.outage_minutes:g} min; {given.busy:.0%} of each core"
    )
    rows = [(what.replace("`", ""), words(one)) for what, words in _ROWS]
    width = max(len(what) for what, _ in rows)
    lines = [f"{what.ljust(width)}  {words.rjust(12)}" for what, words in rows]
    each = "" if one.systems == 1 else "\n\nAll lines below the third are for each of the systems."
    return "\n".join([head, "", *lines]) + f"{each}\n\ncosts: {costs.source}\nassumptions: docs/sizing.md"


def rates_table(given: Given, costs: Costs, rates: Sequence[float] = PAGE_RATES) -> str:
    """A Markdown table with a column for each rate."""
    found = [estimate(replace(given, rate=rate), costs) for rate in rates]
    rows = [["events/s", *(f"{rate:,.0f}" for rate in rates)], ["---", *["---:"] * len(rates)]]
    rows += [[what, *(words(one) for one in found)] for what, words in _ROWS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def costs_table(all_costs: Sequence[Costs]) -> str:
    """A Markdown table of the measured costs."""
    rows: list[tuple[str, Callable[[Costs], str]]] = [
        ("ingest, µs of CPU: an event alone in its request", lambda one: number(one.single_us)),
        (f"… an event in a body of {BATCH_EVENTS}", lambda one: number(one.batch_us)),
        (f"the log's server, µs of CPU: an event in a body of {BATCH_EVENTS}", lambda one: number(one.log_us)),
        ("a drain, µs of CPU: a record", lambda one: number(one.drain_us)),
        ("PostgreSQL, µs of CPU: a record", lambda one: number(one.postgres_us)),
        ("bytes of these events; of these records", lambda one: f"{one.event_bytes:.0f}; {one.record_bytes:.0f}"),
        ("bytes of a record in the event log", lambda one: f"{one.held_bytes:.0f}"),
        ("bytes of a record in PostgreSQL, with its indexes", lambda one: f"{one.stored_bytes:.0f}"),
        ("commands of the control Redis: an ingest process, a second", lambda one: f"{one.ingest_commands:.0f}"),
        ("… a system without ingest that does nothing, a second", lambda one: f"{one.idle_commands:.0f}"),
        ("… a lease; a batch", lambda one: f"{one.lease_commands:.1f}; {one.batch_commands:.1f}"),
        ("the smallest batch of a drain, ms", lambda one: f"{1000 * one.batch_seconds:.1f}"),
    ]
    lines = [["measured", *(one.log for one in all_costs)], ["---", *["---:"] * len(all_costs)]]
    lines += [[what, *(words(one) for one in all_costs)] for what, words in rows]
    sources = [f"- {one.log}: {one.source}" for one in all_costs]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *sources])


def bodies_table(costs: Costs, bodies: Sequence[int] = (1, 10, 100, 1000)) -> str:
    """A Markdown table of ingest's cost for an event, by the number of events in its request."""
    rows = [["events in a request", *map(str, bodies)], ["---", *["---:"] * len(bodies)]]
    rows.append(["µs of CPU for an event", *(number(ingest_us(costs, body)) for body in bodies)])
    rows.append(["events/s that one core takes", *(number(1e6 / ingest_us(costs, body)) for body in bodies)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_tables(page: str, redis: Costs, kafka: Costs) -> str:
    """The page with its tables updated. Raises ValueError if it has no place for one."""
    given = Given(rate=0, size=300)
    tables = {
        "costs": costs_table([redis, kafka]),
        "bodies": bodies_table(redis),
        "redis": rates_table(given, redis),
        "kafka": rates_table(replace(given, copies=3), kafka),
        "large": rates_table(replace(given, size=2000), redis),
    }
    for name, text in tables.items():
        begin, end = f"<!-- table {name}: {_COMMAND} -->", "<!-- end -->"
        place = f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})"
        page, places = re.subn(place, f"\n{text}\n\n".replace("\\", r"\\"), page, flags=re.DOTALL)
        if places != 1:
            raise ValueError(f"the page has {places} places for the table {name}")
    return page
