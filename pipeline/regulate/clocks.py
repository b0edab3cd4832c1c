"""Compares the wall clocks of this process and of PostgreSQL with the control store's."""

from dataclasses import dataclass

from pipeline.flow.clocks import Look, difference_words
from pipeline.names import AlarmCode
from pipeline.regulate.sample import Sample
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Looks:
    """One read of the control store's clock, timed by the two clocks of this machine."""

    by_wall: Look
    by_monotonic: Look


def compare_clocks(looks: Looks, sample: Sample, settings: Settings, actor: str) -> None:
    """Report this process and PostgreSQL if their clocks differ from the store's. No decision depends on it."""
    beyond = settings.clock_difference_seconds_max
    ahead = looks.by_wall.ahead_seconds(beyond=beyond)
    if ahead is not None:  # the store's clock is ahead, so this one is behind
        what = f"{actor}: its clock is {difference_words(-ahead)} the control store's (Redis)"
        sample.degraded(AlarmCode.CLOCKS_DIFFER, what, synchronise(actor))
    database = sample.database_clock
    ahead = None if database is None else database.ahead_of(looks.by_monotonic, beyond=beyond)
    if ahead is not None:
        what = f"PostgreSQL's clock is {difference_words(ahead)} the control store's (Redis)"
        sample.degraded(AlarmCode.CLOCKS_DIFFER, what, synchronise("PostgreSQL"))


def synchronise(who: str) -> str:
    """Where to look if the clock of a host differs."""
    return (
        f"time synchronisation (NTP, chrony) on the host of {who}; where several differ, on that of the control store"
    )
