"""What ingest processes refused, in memory."""

from collections.abc import Mapping

from pipeline.control_store.memory_server import MemoryAdapter
from pipeline.flow.refusals import SLICES_MAX, WINDOW_SECONDS, Refusals, together


class MemoryThrottle(MemoryAdapter):
    """What ingest processes refused, by account; see Throttle."""

    def report(self, process: str, slices: Mapping[int, Refusals]) -> None:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.monotonic()
            content.throttle |= {(process, number % SLICES_MAX): (now, one) for number, one in slices.items()}
            for key, (at, _) in list(content.throttle.items()):
                if now - at > WINDOW_SECONDS:
                    del content.throttle[key]

    def reported(self) -> Refusals:
        with self._server.changed:
            now = self._server.clock.monotonic()
            found = [one for at, one in self._server.content().throttle.values() if now - at <= WINDOW_SECONDS]
        return together(found, accounts_max=self._settings.accounts_max)
