"""What a tick did, and which of its steps failed."""

from dataclasses import dataclass

from pipeline.ports.control import PublishedRate


@dataclass(frozen=True, slots=True)
class RegulateReport:
    """The result of one tick; `problems` has the steps that failed, in words."""

    ran: bool  # False: another tick ran within this period, or is still under way
    published: PublishedRate | None = None
    lag: dict[int, int] | None = None  # events, for each partition that answered; None: unknown
    restored: bool = False
    terminated: tuple[int, ...] = ()
    database_answered: bool = False  # PostgreSQL returned the stored offsets
    problems: tuple[str, ...] = ()
    is_measure_due: bool = False  # the caller is to measure what PostgreSQL holds
