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
        self._connection.run(load_script("history"), self._keys, _arguments(counts, sample))

    def since(self, position: str, *, entries_max: int) -> Sequence[HistoryEntry]:
        return _entries(self._connection.call(*self._read(position, entries_max)))

    def add_and_read(
        self,
        counts: Mapping[str, int],
        sample: Mapping[str, Any] | None,
        *,
        after: str,
        entries_max: int,
        age_seconds_min: float = 0.0,
    ) -> tuple[bool, Sequence[HistoryEntry]]:
        arguments, read = _arguments(counts, sample, age_seconds_min), self._read(after, entries_max)
        is_added, found = self._connection.run_and_call(load_script("history"), self._keys, arguments, read)
        return bool(is_added), _entries(found)

    def _read(self, position: str, entries_max: int) -> tuple[str | int, ...]:
        return "XREVRANGE", self._entries_key, "+", f"({position}" if position else "-", "COUNT", entries_max


def _arguments(counts: Mapping[str, int], sample: Mapping[str, Any] | None, age_seconds_min: float = 0.0) -> list[str]:
    """The arguments of the script that adds counts."""
    text = "" if sample is None else json.dumps(sample, separators=(",", ":"))
    levels = [name for name in LEVEL_COUNTS if name in counts]
    protocols = [name for name in PROTOCOL_COUNTS if name in counts]
    arguments = [text, str(HISTORY_ENTRIES_MAX), str(int(FORGET_SECONDS * 1000)), str(len(COUNTS)), str(len(levels))]
    arguments.append(str(round(age_seconds_min * 1000)))
    for name in (*COUNTS, *levels, *protocols):
        arguments += [name, str(counts.get(name, 0))]
    return arguments


def _entries(found: Sequence[tuple[str, dict[str, str]]]) -> list[HistoryEntry]:
    """The readable ones of the entries found, newest first, which are not too old. Oldest first."""
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
        at=int(fields.get("t") or position.partition("-")[0]) / 1000,
        counts=tuple(int(text) for text in fields["c"].split()),
        sample=json.loads(fields["s"]),
        levels=tuple(int(text) for text in fields.get("l", "").split()),
        protocols=tuple(int(text) for text in fields.get("p", "").split()),
    )
