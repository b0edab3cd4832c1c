"""The table of an idle system: programs by their share of a core, and the commands that the servers executed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_COMMANDS_SHOWN: Final = 8  # of each server


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts since the start of each program and server, by name."""

    cpu_seconds: Mapping[str, float]
    processes: Mapping[str, int]
    commands: Mapping[str, Mapping[str, int]]


def ratio(share: float, baseline: float) -> str:
    """A share as a multiple of the baseline, with two decimals; a dash without a baseline."""
    return f"{share / baseline:.2f}" if baseline > 0 else "-"


def report(before: Usage, after: Usage, *, seconds: float, sessions: int) -> tuple[float, str]:
    """The use between two counts: the sum in percent of a core, and a table.

    A program that restarted between them counts from its start.
    """
    used = {
        name: 100 * _since(total, before.cpu_seconds.get(name, 0.0)) / seconds
        for name, total in after.cpu_seconds.items()
    }
    rows = [f"{'program':<16}{'processes':>10}{'% of a core':>13}"]
    for name, share in sorted(used.items(), key=lambda one: -one[1]):
        rows.append(f"{name:<16}{after.processes.get(name, 0):>10}{share:>13.2f}")
    rows.append(f"{'all':<16}{sum(after.processes.values()):>10}{sum(used.values()):>13.2f}")
    rows.append(f"\n{sessions} sessions of PostgreSQL")
    for name, counts in after.commands.items():
        earlier = before.commands.get(name, {})
        rates = {one: _since(count, earlier.get(one, 0)) / seconds for one, count in counts.items()}
        most = sorted(((rate, one) for one, rate in rates.items() if rate > 0), reverse=True)[:_COMMANDS_SHOWN]
        words = ", ".join(f"{one} {rate:.1f}" for rate, one in most)
        rows.append(f"{name}: {sum(rates.values()):.1f} commands/s ({words})")
    return sum(used.values()), "\n".join(rows)


def commands_since(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """The commands between two counts, by name, of one server."""
    return sum(_since(count, before.get(name, 0)) for name, count in after.items())


def _since(total: float, earlier: float) -> float:
    return total - earlier if total >= earlier else total
