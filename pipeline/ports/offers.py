"""What is offered to each ingest process, for the controller that shares out the rate."""

from collections.abc import Sequence
from typing import Final, Protocol

from pipeline.flow.shares import Offered

REPORT_SECONDS: Final = 1.0  # between two reports of a process
# A process that has ended stops counting after this time: two lost reports, and some delay.
REPORT_SECONDS_MAX: Final = 3.5


class Offers(Protocol):
    """The newest report of each process. A flush loses them: the next reports follow within REPORT_SECONDS.

    Every method raises StoreUnavailableError.
    """

    def report(self, process: str, offered: Offered) -> None:
        """Replace the report of a process. Older ones than REPORT_SECONDS_MAX, of other processes, are removed."""

    def reported(self) -> Sequence[Offered]:
        """The reports that are not older than REPORT_SECONDS_MAX."""
