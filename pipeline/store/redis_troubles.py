"""What processes find wrong with themselves, on Redis."""

import json
from collections.abc import Sequence

from pipeline.names import KEY_TROUBLES
from pipeline.settings import Settings
from pipeline.store.common import TROUBLE_CHARS_MAX, TROUBLE_SECONDS, clean_text
from pipeline.store.connection import ControlConnection, load_script


class RedisTroubles:
    """One hash, which expires as a whole; see Troubles.

    Its weakness: what a process reported that has ended since goes with the last report of another.
    """

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._key = self._connection.key(KEY_TROUBLES)

    def report(self, process: str, problems: Sequence[str]) -> None:
        cut = [clean_text(problem, TROUBLE_CHARS_MAX) for problem in problems]
        arguments = [process, json.dumps(cut) if cut else "", str(int(TROUBLE_SECONDS * 1000))]
        self._connection.run(load_script("report_troubles"), [self._key], arguments)

    def reported(self) -> dict[str, list[str]]:
        found: dict[str, str] = self._connection.call("HGETALL", self._key)
        return {process: [str(problem) for problem in json.loads(text)] for process, text in found.items()}
