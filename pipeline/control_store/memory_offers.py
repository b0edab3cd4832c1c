"""What is offered to each ingest process, in memory."""

from collections.abc import Sequence

from pipeline.control_store.memory_server import MemoryAdapter
from pipeline.flow.shares import Offered
from pipeline.ports.offers import REPORT_SECONDS_MAX


class MemoryOffers(MemoryAdapter):
    """What is offered to each ingest process; see Offers."""

    def report(self, process: str, offered: Offered) -> None:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.monotonic()
            content.offers[process] = (now, offered)
            for name, (at, _) in list(content.offers.items()):
                if now - at > REPORT_SECONDS_MAX:
                    del content.offers[name]

    def reported(self) -> Sequence[Offered]:
        with self._server.changed:
            now = self._server.clock.monotonic()
            return [offered for at, offered in self._server.content().offers.values() if now - at <= REPORT_SECONDS_MAX]
