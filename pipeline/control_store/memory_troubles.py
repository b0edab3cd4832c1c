"""Problems that processes find in themselves, in memory."""

from collections.abc import Sequence

from pipeline.control_store.common import TROUBLE_SECONDS, bounded_trouble
from pipeline.control_store.memory_server import MemoryAdapter
from pipeline.ports.control import Trouble


class MemoryTroubles(MemoryAdapter):
    """Problems that processes find in themselves; see Troubles."""

    def report(self, process: str, problems: Sequence[Trouble]) -> None:
        with self._server.changed:
            content = self._server.content()
            content.troubles.pop(process, None)
            if problems:
                content.troubles[process] = [bounded_trouble(problem) for problem in problems]
                content.troubles_at[process] = self._server.clock.now()

    def reported(self) -> dict[str, list[Trouble]]:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.now()
            held = content.troubles.items()
            content.troubles = {one: it for one, it in held if 0 <= now - content.troubles_at[one] < TROUBLE_SECONDS}
            return dict(content.troubles)
