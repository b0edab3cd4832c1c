"""Problems that processes find in themselves, on Redis."""

import json
from collections.abc import Sequence
from typing import Final

import msgspec

from pipeline.control_store.common import TROUBLE_SECONDS, bounded_trouble
from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.names import KEY_TROUBLES, KEY_TROUBLES_AT, AlarmCode
from pipeline.ports.control import Trouble
from pipeline.settings import Settings

_decoder: Final = msgspec.json.Decoder(list[str | list[str]])


class RedisTroubles:
    """One hash, which expires as a whole; see Troubles. A report also removes those of processes that ended."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._key = self._connection.key(KEY_TROUBLES)
        self._times_key = self._connection.key(KEY_TROUBLES_AT)

    def report(self, process: str, problems: Sequence[Trouble]) -> None:
        cut = [_written(bounded_trouble(problem)) for problem in problems]
        arguments = [process, json.dumps(cut) if cut else "", str(int(TROUBLE_SECONDS * 1000))]
        self._connection.run(load_script("report_troubles"), [self._key, self._times_key], arguments)

    def reported(self) -> dict[str, list[Trouble]]:
        found: dict[str, str] = self._connection.call("HGETALL", self._key)
        return {process: _read(text) for process, text in found.items()}


def _written(trouble: Trouble) -> str | list[str]:
    """A loop's problem as text only. Older versions read and write only this format."""
    return trouble.what if trouble.code == AlarmCode.LOOP_FAILS else [trouble.code, trouble.what]


def _read(text: str) -> list[Trouble]:
    """The problems in a report. If this version can't read it, that itself is the problem: the process has one."""
    try:
        return [_trouble(problem) for problem in _decoder.decode(text)]
    except ValueError:  # those of msgspec are ValueErrors
        what = f"it reports a problem that this version of Sluice can't read: {text}"
        return [bounded_trouble(Trouble(AlarmCode.LOOP_FAILS, what))]


def _trouble(found: str | list[str]) -> Trouble:
    """One problem. Raises ValueError if it has another format."""
    if isinstance(found, str):
        return Trouble(AlarmCode.LOOP_FAILS, found)
    code, what, *_ = found
    return Trouble(code, what)
