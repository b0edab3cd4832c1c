"""What all ingest processes refused in the last minutes, by account."""

from collections.abc import Mapping
from typing import Protocol

from pipeline.flow.refusals import Refusals


class Throttle(Protocol):
    """The refusals of each process, in slices of time. A flush loses what was reported: only these counts are affected.

    Every method raises StoreUnavailableError.
    """

    def report(self, process: str, slices: Mapping[int, Refusals]) -> None:
        """Replace these slices of a process. The same process uses the numbers of slices in turn (SLICES_MAX)."""

    def reported(self) -> Refusals:
        """The refusals of all processes in the last WINDOW_SECONDS, those of processes that have ended too."""
