"""Counters and facts of the whole system on Redis."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.errors import StoreRefusesError
from pipeline.names import KEY_BUCKET, KEY_COUNTERS, KEY_COUNTERS_SENDER, KEY_FACTS
from pipeline.ports.counters import CountersRead
from pipeline.settings import Settings

_T = TypeVar("_T")
_SENDER_SECONDS: Final = 600  # how late an addition whose response was lost may be repeated


class RedisCounters:
    """See Counters. Weakness: a flush also loses the numbers, so an addition repeated after a flush counts twice."""

    def __init__(self, settings: Settings, name: str = "redis_url") -> None:
        """`name`: the setting of the server's URL; the event log's Redis is asked for its memory only."""
        self._connection = ControlConnection(settings, name)
        self._counters = self._connection.key(KEY_COUNTERS)
        self._facts = self._connection.key(KEY_FACTS)
        self._bucket = self._connection.key(KEY_BUCKET)

    def add(self, counts: Mapping[str, float], *, sender: str, number: int) -> None:
        arguments = [text for name, count in counts.items() if count for text in (name, repr(float(count)))]
        if arguments:
            keys = [self._counters, self._connection.key(KEY_COUNTERS_SENDER, sender)]
            self._connection.run(load_script("add_counts"), keys, [str(number), str(_SENDER_SECONDS), *arguments])

    def read(self) -> CountersRead:
        counts, facts, bucket, time, memory = self._connection.ask_all(
            [
                ("HGETALL", self._counters),
                ("GET", self._facts),
                ("HMGET", self._bucket, "tokens", "at", "rate"),
                ("TIME",),
                ("INFO", "memory"),
            ]
        )
        problems: dict[str, str] = {}
        return CountersRead(
            _part("totals", problems, _totals, counts) or {},
            _part("facts", problems, _facts, facts) or {},
            _part("tokens", problems, _tokens, bucket, time),
            _part("memory", problems, _memory, memory),
            problems,
        )

    def note(self, facts: Mapping[str, Any], *, seconds: float) -> None:
        self._connection.call("SET", self._facts, json.dumps(facts), "PX", max(1, int(seconds * 1000)))

    def memory(self) -> tuple[int, int]:
        return _memory(self._connection.call("INFO", "memory"))


def _part(name: str, problems: dict[str, str], read: Callable[..., _T], *answers: Any) -> _T | None:
    """A part of what was read; None, and an entry in `problems`, if an answer was refused or can't be read."""
    for answer in answers:
        if isinstance(answer, StoreRefusesError):
            problems[name] = str(answer)
            return None
    try:
        return read(*answers)
    except (KeyError, TypeError, ValueError) as error:
        problems[name] = f"the answer of the control store (Redis) can't be read: {error!r}"
        return None


def _totals(found: Mapping[str, str]) -> dict[str, float]:
    totals = {}
    for name, value in found.items():
        with contextlib.suppress(ValueError):  # of a newer version, which counts something else
            totals[name] = float(value)
    return totals


def _facts(text: str | None) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(text) if text else {}
        if isinstance(found, dict):
            return found
    return {}  # of another version; they are noted again every few seconds


def _tokens(bucket: Sequence[str | None], time: Sequence[str]) -> tuple[float, float, float] | None:
    """Tokens, age and rate of a bucket, at the server's time (seconds, microseconds)."""
    tokens, at, rate = bucket
    if tokens is None or at is None or rate is None:
        return None
    seconds, micros = time
    return float(tokens), max(0.0, int(seconds) + int(micros) / 1e6 - float(at)), float(rate)


def _memory(fields: Mapping[str, int]) -> tuple[int, int]:
    return int(fields["used_memory"]), int(fields["maxmemory"])
