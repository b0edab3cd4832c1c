"""What is offered to each ingest process, on Redis."""

from collections.abc import Sequence
from typing import Final

import msgspec

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.flow.shares import Offered
from pipeline.names import KEY_OFFERS
from pipeline.ports.offers import REPORT_SECONDS_MAX
from pipeline.settings import Settings

_decoder: Final = msgspec.json.Decoder(Offered)


class RedisOffers:
    """One hash with a report of each process; see Offers."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._keys = [self._connection.key(KEY_OFFERS)]

    def report(self, process: str, offered: Offered) -> None:
        arguments = [process, msgspec.json.encode(offered).decode(), repr(REPORT_SECONDS_MAX)]
        self._connection.run(load_script("report_offers"), self._keys, arguments)

    def reported(self) -> Sequence[Offered]:
        found: list[str] = self._connection.run(load_script("read_offers"), self._keys, [repr(REPORT_SECONDS_MAX)])
        reports = []
        for text in found:
            try:
                reports.append(_decoder.decode(text))
            except msgspec.MsgspecError:
                continue  # of a version whose reports this one can't read: its accounts count as offering nothing
        return reports
