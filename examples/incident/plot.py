"""Draws an incident from the table `log_events`: who sent how much, what waited, and how old it was.

Only stored events are seen: draw it once the lag is 0 again.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psycopg2
from matplotlib.figure import Figure

SEVERITIES = {
    "FATAL": "#7f0000", "ERROR": "#d73027", "WARN": "#fdae61",
    "INFO": "#4575b4", "DEBUG": "#91bfdb", "TRACE": "#cccccc",
}  # fmt: skip
# `stored_at >= begin` is true of each event that was received since; it lets the index of retention help.
ACCEPTED = """
SELECT floor(extract(epoch FROM received_at - %(begin)s) / %(step)s)::int, severity, count(*)
FROM log_events
WHERE received_at >= %(begin)s AND received_at < %(end)s AND stored_at >= %(begin)s
GROUP BY 1, 2
"""
# Also what was received before the first moment or stored after the last one.
STORED = """
SELECT floor(extract(epoch FROM stored_at - %(begin)s) / %(step)s)::int, count(*),
       count(*) FILTER (WHERE received_at < %(begin)s), min(received_at)
FROM log_events
WHERE stored_at >= %(begin)s AND received_at < %(end)s
GROUP BY 1
"""


@dataclass(frozen=True)
class Incident:
    """One value for each step; rates are of the step, `waiting` and `oldest_seconds` are of its end."""

    times: list[datetime]  # ends of the steps
    accepted: dict[str, list[float]]  # events/s by severity
    stored: list[float]  # events/s
    waiting: list[int]  # events that were accepted and not stored
    oldest_seconds: list[float]  # age of the oldest of them; 0 if none waits

    @property
    def summary(self) -> str:
        """The worst moments in words."""
        most, oldest = max(self.waiting), max(self.oldest_seconds)
        at = self.times[self.waiting.index(most)]
        return (
            f"{self.times[0]:%F %T} to {self.times[-1]:%T} UTC: at most {most:,} events waited (at {at:%T}), "
            f"the oldest for {oldest:,.0f} s"
        )


def read(connection: Any, begin: datetime, end: datetime, points: int) -> Incident:
    """Read the events of a time."""
    step = (end - begin) / points
    values = {"begin": begin, "end": end, "step": step.total_seconds()}
    accepted = {severity: [0] * points for severity in SEVERITIES}
    stored, since, oldest = [0] * points, [datetime.max.replace(tzinfo=UTC)] * (points + 1), []
    waits = 0
    with connection.cursor() as cursor:
        cursor.execute(ACCEPTED, values)
        for slot, severity, count in cursor:
            accepted[severity][min(slot, points - 1)] += count
        cursor.execute(STORED, values)
        for slot, count, earlier, first in cursor:
            since[min(slot, points)] = min(since[min(slot, points)], first)
            waits += earlier
            if slot < points:
                stored[slot] += count
    for slot in reversed(range(points)):  # the oldest of what is stored from this step on
        since[slot] = min(since[slot], since[slot + 1])
    waiting, times = [], [begin + step * (slot + 1) for slot in range(points)]
    for slot, at in enumerate(times):
        waits += sum(counts[slot] for counts in accepted.values()) - stored[slot]
        waiting.append(waits)
        oldest.append(max(0.0, (at - since[slot + 1]).total_seconds()))
    seconds = step.total_seconds()
    rates = {severity: [count / seconds for count in counts] for severity, counts in accepted.items() if any(counts)}
    return Incident(times, rates, [count / seconds for count in stored], waiting, oldest)


def draw(incident: Incident, path: Path) -> None:
    """Write the picture; the suffix says in which format, such as .svg or .png."""
    with mpl.rc_context({"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        rates, waits, ages = figure.subplots(3, 1, sharex=True, height_ratios=[2, 1, 1])
        rates.stackplot(
            incident.times, list(incident.accepted.values()), labels=list(incident.accepted),
            colors=[SEVERITIES[severity] for severity in incident.accepted],
        )  # fmt: skip
        rates.plot(incident.times, incident.stored, color="black", linewidth=1, label="stored")
        rates.set_ylabel("accepted, events/s")
        rates.legend(loc="upper left", frameon=False, ncols=7)
        waits.fill_between(incident.times, incident.waiting, color="#888888")
        waits.set_ylabel("waiting, events")
        ages.plot(incident.times, incident.oldest_seconds, color="#d73027")
        ages.set_ylabel("oldest, s")
        ages.set_xlabel("UTC")
        for one in (rates, waits, ages):
            one.set_ylim(bottom=0)
        figure.suptitle(incident.summary)
        figure.savefig(path)


def main() -> int:
    """Read, draw and say the worst moments; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="begin", type=moment, help="such as 2026-01-31T03:00Z")
    parser.add_argument("--to", dest="end", type=moment, help="(now)")
    parser.add_argument("--minutes", type=float, default=15, help="without --from: so long before the end (15)")
    parser.add_argument("--points", type=int, default=180, help="steps of time (180)")
    parser.add_argument("--out", type=Path, default=Path("incident.svg"), help="(incident.svg)")
    asked = parser.parse_args()
    end = asked.end or datetime.now(UTC)
    begin = asked.begin or end - timedelta(minutes=asked.minutes)
    if begin >= end or asked.points < 1:
        parser.error("there is no time between --from and --to, or no point")
    connection = psycopg2.connect(os.environ.get("DATABASE_URL", "postgresql://localhost:5432/sluice"))
    try:
        incident = read(connection, begin, end, asked.points)
    finally:
        connection.close()
    if not incident.accepted:
        print(f"no event was received from {begin} to {end}: name another time with --from and --to", file=sys.stderr)
        return 1
    draw(incident, asked.out)
    print(f"{incident.summary}\n{asked.out}")
    return 0


def moment(text: str) -> datetime:
    """A time of the command line; without a zone it is UTC."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main())
