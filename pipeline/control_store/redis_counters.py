"""Counters and facts of the whole system on Redis."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Final

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.names import KEY_BUCKET, KEY_COUNTERS, KEY_COUNTERS_SENDER, KEY_FACTS
from pipeline.settings import Settings

_SENDER_SECONDS: Final = 600  # how late an addition whose response was lost may be repeated


class RedisCounters:
    """See Counters. Weakness: a flush also loses the numbers, so an addition repeated after a flush counts twice."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._counters = self._connection.key(KEY_COUNTERS)
        self._facts = self._connection.key(KEY_FACTS)
        self._bucket = self._connection.key(KEY_BUCKET)

    def add(self, counts: Mapping[str, float], *, sender: str, number: int) -> None:
        arguments = [text for name, count in counts.items() if count for text in (name, repr(float(count)))]
        if arguments:
            keys = [self._counters, self._connection.key(KEY_COUNTERS_SENDER, sender)]
            self._connection.run(load_script("add_counts"), keys, [str(number), str(_SENDER_SECONDS), *arguments])

    def totals(self) -> dict[str, float]:
        found: dict[str, str] = self._connection.call("HGETALL", self._counters)
        totals = {}
        for name, value in found.items():
            with contextlib.suppress(ValueError):  # of a newer version, which counts something else
                totals[name] = float(value)
        return totals

    def note(self, facts: Mapping[str, Any], *, seconds: float) -> None:
        self._connection.call("SET", self._facts, json.dumps(facts), "PX", max(1, int(seconds * 1000)))

    def facts(self) -> dict[str, Any]:
        text = self._connection.call("GET", self._facts)
        with contextlib.suppress(ValueError):
            found = json.loads(text) if text else {}
            if isinstance(found, dict):
                return found
        return {}  # of another version; they are noted again every few seconds

    def tokens(self) -> tuple[float, float, float] | None:
        tokens, at, rate = self._connection.call("HMGET", self._bucket, "tokens", "at", "rate")
        if tokens is None:
            return None
        seconds, micros = self._connection.call("TIME")
        return float(tokens), max(0.0, int(seconds) + int(micros) / 1e6 - float(at)), float(rate)

    def memory(self) -> tuple[int, int]:
        fields: dict[str, int] = self._connection.call("INFO", "memory")
        return int(fields["used_memory"]), int(fields["maxmemory"])
