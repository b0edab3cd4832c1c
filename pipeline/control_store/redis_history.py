"""The last minutes of the system in a bounded stream on Redis; see History."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.names import KEY_HISTORY, KEY_HISTORY_TOTALS
from pipeline.ports.history import (
    COUNTS,
    FORGET_SECONDS,
    HISTORY_ENTRIES_MAX,
    HISTORY_SECONDS,
    LEVEL_COUNTS,
    PROTOCOL_COUNTS,
    HistoryEntry,
)
from pipeline.settings import Settings


class RedisHistory:
    """One stream entry a second, and a hash of totals that every ingest process adds to.

    The stream's size does not depend on the number of processes. After a time-out it is unknown whether the call took
    effect: its counts are dropped, so that they are not counted twice.
    """

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._entries_key = self._connection.key(KEY_HISTORY)
        self._keys = [self._connection.key(KEY_HISTORY_TOTALS), self._entries_key]

    def add(self, counts: Mapping[str, int], sample: Mapping[str, Any] | None) -> None:
        text = "" if sample is None else json.dumps(sample, separators=(",", ":"))
        levels = [name for name in LEVEL_COUNTS if name in counts]
        protocols = [name for name in PROTOCOL_COUNTS if name in counts]
        arguments = [
            text,
            str(HISTORY_ENTRIES_MAX),
            str(int(FORGET_SECONDS * 1000)),
            str(len(COUNTS)),
            str(len(levels)),
        ]
        for name in (*COUNTS, *levels, *protocols):
            arguments += [name, str(counts.get(name, 0))]
        self._connection.run(load_script("history"), self._keys, arguments)

    def since(self, position: str, *, entries_max: int) -> Sequence[HistoryEntry]:
        start = f"({position}" if position else "-"
        found = self._connection.call("XREVRANGE", self._entries_key, "+", start, "COUNT", entries_max)
        read = (_readable_entry(*one) for one in reversed(found))
        entries = [entry for entry in read if entry is not None]
        oldest = entries[-1].at - HISTORY_SECONDS if entries else 0.0
        return [entry for entry in entries if entry.at > oldest]


def _readable_entry(position: str, fields: dict[str, str]) -> HistoryEntry | None:
    """An entry; None if another version wrote it in a format that this one can't read: its second is left out."""
    try:
        entry = _entry(position, fields)
    except (KeyError, ValueError):
        return None
    return entry if isinstance(entry.sample, dict) else None


def _entry(position: str, fields: dict[str, str]) -> HistoryEntry:
    return HistoryEntry(
        id=position,
        at=int(position.partition("-")[0]) / 1000,
        counts=tuple(int(text) for text in fields["c"].split()),
        sample=json.loads(fields["s"]),
        levels=tuple(int(text) for text in fields.get("l", "").split()),
        protocols=tuple(int(text) for text in fields.get("p", "").split()),
    )
