"""Who was refused, how much and why, over the last minutes: counts by account in bounded memory.

Time is cut into slices of SLICE_SECONDS. A slice keeps the heaviest accounts and counts the others together, as
`pipeline.flow.offered` does. Each report has the whole slice and replaces the earlier report, so the next report
repairs a lost one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

WINDOW_SECONDS: Final = 900  # of the answers to operators and clients
SLICE_SECONDS: Final = 60.0
SLICES_MAX: Final = 16  # the window, and the slice that goes on


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused bodies, and their events. A body that was refused unread counts as the last one of its account."""

    requests: int = 0
    events: int = 0

    def __add__(self, other: "Refused") -> "Refused":
        return Refused(self.requests + other.requests, self.events + other.events)


# By the word for the reason: a LimitedBy, or that of another version.
ByReason = Mapping[str, Refused]


def total(by_reason: ByReason) -> Refused:
    """The sum over the reasons."""
    return sum(by_reason.values(), Refused())


@dataclass(frozen=True, slots=True)
class Refusals:
    """What was refused, by account; `other` is what was refused to all other accounts together."""

    accounts: Mapping[str, ByReason] = field(default_factory=dict)
    other: ByReason = field(default_factory=dict)

    @property
    def total(self) -> Refused:
        """What was refused to all accounts."""
        return sum((total(one) for one in (*self.accounts.values(), self.other)), Refused())

    def heaviest(self) -> list[tuple[str, ByReason]]:
        """The accounts with their counts, those with the most refused events first."""
        return sorted(self.accounts.items(), key=lambda item: (-total(item[1]).events, item[0]))


def together(parts: Iterable[Refusals], *, accounts_max: int) -> Refusals:
    """The sum of several; the accounts beyond the heaviest `accounts_max` are in `other`."""
    accounts: dict[str, ByReason] = {}
    other: ByReason = {}
    for part in parts:
        other = _sum(other, part.other)
        for account, by_reason in part.accounts.items():
            accounts[account] = _sum(accounts.get(account, {}), by_reason)
    if len(accounts) <= accounts_max:
        return Refusals(accounts, other)
    ordered = Refusals(accounts).heaviest()
    for _, by_reason in ordered[accounts_max:]:
        other = _sum(other, by_reason)
    return Refusals(dict(ordered[:accounts_max]), other)


class RefusalTable:
    """The refusals of one process, in slices of its own clock. A slice's number grows from 0."""

    def __init__(self, accounts_max: int) -> None:
        self._accounts_max = accounts_max
        self._slices: dict[int, Refusals] = {}
        self._changed: set[int] = set()  # slices that were not reported since their last change

    def add(self, refused: Refusals, now: float) -> None:
        """Add what was refused since the last call; `now` is in seconds of the clock of this table."""
        number = int(now // SLICE_SECONDS)
        held = self._slices.get(number, Refusals())
        self._slices[number] = together((held, refused), accounts_max=self._accounts_max)
        self._changed.add(number)
        self._forget(number)

    def changed(self) -> dict[int, Refusals]:
        """The slices that were not reported since their last change, by number."""
        return {number: self._slices[number] for number in self._changed}

    def note_reported(self, slices: Mapping[int, Refusals]) -> None:
        """Note that these slices were reported. One that has changed meanwhile is reported again."""
        for number, reported in slices.items():
            if self._slices.get(number) is reported:
                self._changed.discard(number)

    def window(self, now: float) -> Refusals:
        """The refusals of the last WINDOW_SECONDS, with those of the slice in which they begin."""
        self._forget(int(now // SLICE_SECONDS))
        return together(self._slices.values(), accounts_max=self._accounts_max)

    def _forget(self, newest: int) -> None:
        for number in [number for number in self._slices if number <= newest - SLICES_MAX]:
            del self._slices[number]
            self._changed.discard(number)


def _sum(one: ByReason, other: ByReason) -> ByReason:
    if not other:
        return one
    return {**one, **{reason: one.get(reason, Refused()) + count for reason, count in other.items()}}
