"""The interface of a fault: inject it, maintain it, repair it, and report whether it took effect."""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from checks.soak.found import Stored
from checks.soak.rig import Rig
from checks.soak.windows import ClockSpan, Part, Refusal


@dataclass(frozen=True, slots=True)
class Effect:
    """Whether a fault took effect, and the sign of it."""

    hit: bool
    words: str


class Fault(ABC):
    """One fault of one run. If the harness is weak, the report lists faults that did not hit."""

    name: str
    seconds: tuple[float, float] = (1.0, 3.0)  # how long it lasts, at least and at most
    control_outage = False  # whether ingest may not reach the bucket, or the bucket forgets what it gave
    touches: frozenset[Part] = frozenset()  # parts that it excuses while it lasts, and shortly after
    dead: frozenset[Part] = frozenset()  # parts that are unreachable while it lasts
    accepts_nothing = False  # whether no event can get the required copies while it lasts

    def __init__(self, pick: random.Random) -> None:
        self.pick = pick  # the fault's own choices, from the run's seed
        # The judge needs these facts after the repair.
        self.lost: list[Stored] = []  # records that the log has lost
        self.lost_unread: set[str] = set()  # keys of the lost records that were not stored then
        self.clocks: list[ClockSpan] = []  # of ingest
        self.refusals: list[Refusal] = []
        self.complaints: list[str] = []  # expected results that did not come, as text

    def impossible(self, rig: Rig) -> str | None:
        """The reason why this rig can't make it; None if it can."""
        return None

    def prepare(self, rig: Rig) -> None:  # noqa: B027 - most faults need none
        """Wait until it may start. It disturbs nothing yet, and its time does not run."""

    @abstractmethod
    def inject(self, rig: Rig) -> None: ...

    def look(self, rig: Rig) -> None:  # noqa: B027 - most faults need none
        """Called repeatedly while the fault lasts."""

    def has_hit(self, rig: Rig) -> bool:
        """Whether it has already hit something, if that needs luck. Without a hit, the fault lasts a while longer."""
        return True

    @abstractmethod
    def repair(self, rig: Rig) -> None: ...

    @abstractmethod
    def effect(self, rig: Rig) -> Effect:
        """Called after the repair."""
