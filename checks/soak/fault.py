"""The interface of a fault: inject it, maintain it, repair it, and report whether it took effect."""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from checks.soak.found import Stored
from checks.soak.rig import Rig
from checks.soak.windows import ClockSpan, Part, Refusal


@dataclass(frozen=True, slots=True)
class Effect:
    """Whether a fault took effect, and what is the sign of it."""

    hit: bool
    words: str


class Fault(ABC):
    """One fault of one run. Weaknesses of the harness show as faults that did not hit, in the report."""

    name: str
    seconds: tuple[float, float] = (1.0, 3.0)  # how long it lasts, at least and at most
    control_outage = False  # whether ingest may be unable to ask the bucket, or the bucket forgets what it gave
    touches: frozenset[Part] = frozenset()  # what it excuses while it lasts, and shortly after
    dead: frozenset[Part] = frozenset()  # what nobody can reach while it lasts
    accepts_nothing = False  # whether no event can have the copies that were asked for, while it lasts

    def __init__(self, pick: random.Random) -> None:
        self.pick = pick  # the fault's own choices, from the run's seed
        # What the judge must know of it, once it is repaired.
        self.lost: list[Stored] = []  # records that the log has lost
        self.lost_unread: set[str] = set()  # keys of those that were not stored then
        self.clocks: list[ClockSpan] = []  # of ingest
        self.refusals: list[Refusal] = []
        self.complaints: list[str] = []  # what did not come of it, in words

    def impossible(self, rig: Rig) -> str | None:
        """Why it can't be made on this rig; None where it can."""
        return None

    def prepare(self, rig: Rig) -> None:  # noqa: B027 - most faults need none
        """Wait until it may be made. Nothing is disturbed yet, and its time does not run."""

    @abstractmethod
    def inject(self, rig: Rig) -> None: ...

    def look(self, rig: Rig) -> None:  # noqa: B027 - most faults need none
        """Called again and again while the fault lasts."""

    def has_hit(self, rig: Rig) -> bool:
        """Whether it has hit something already, where that needs luck: the fault lasts for a while longer without."""
        return True

    @abstractmethod
    def repair(self, rig: Rig) -> None: ...

    @abstractmethod
    def effect(self, rig: Rig) -> Effect:
        """Asked after the repair."""
