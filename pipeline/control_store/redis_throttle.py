"""What was refused, by account, on Redis."""

from collections.abc import Mapping
from typing import Final

import msgspec

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.flow.refusals import SLICES_MAX, WINDOW_SECONDS, Refusals, together
from pipeline.names import KEY_THROTTLE
from pipeline.settings import Settings

_decoder: Final = msgspec.json.Decoder(Refusals)


class RedisThrottle:
    """One hash with the slices of each process; see Throttle."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._accounts_max = settings.accounts_max
        self._keys = [self._connection.key(KEY_THROTTLE)]

    def report(self, process: str, slices: Mapping[int, Refusals]) -> None:
        arguments = [repr(float(WINDOW_SECONDS))]
        for number, refused in slices.items():
            arguments += [f"{process} {number % SLICES_MAX}", msgspec.json.encode(refused).decode()]
        self._connection.run(load_script("report_throttle"), self._keys, arguments)

    def reported(self) -> Refusals:
        found: list[str] = self._connection.run(load_script("read_throttle"), self._keys, [repr(float(WINDOW_SECONDS))])
        parts = []
        for text in found:
            try:
                parts.append(_decoder.decode(text))
            except msgspec.MsgspecError:
                continue  # of a version whose reports this one can't read
        return together(parts, accounts_max=self._accounts_max)
