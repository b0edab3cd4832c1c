"""Counters and facts in memory, for tests and simulation. They behave like those on Redis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.control_store.memory_server import MemoryServer
from pipeline.ports.counters import CountersRead


@dataclass
class _Held:
    """The data that a flush loses; `of` is the server content that it belongs to."""

    of: object
    counters: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    facts_until: float = 0.0


class MemoryCounters:
    """See Counters. The processes of one system share one of these."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self._server = server or MemoryServer()
        self._held = _Held(of=None)

    def _now_held(self) -> _Held:
        content = self._server.content()
        if self._held.of is not content:
            self._held = _Held(of=content)
        return self._held

    def add(self, counts: Mapping[str, float], *, sender: str, number: int) -> None:
        with self._server.changed:
            held = self._now_held()
            if held.numbers.get(sender, 0) >= number:
                return
            held.numbers[sender] = number
            for name, count in counts.items():
                if count:
                    held.counters[name] = held.counters.get(name, 0.0) + count

    def read(self) -> CountersRead:
        with self._server.changed:
            held, bucket, clock = self._now_held(), self._server.content().bucket, self._server.clock
            return CountersRead(
                totals=dict(held.counters),
                facts=dict(held.facts) if clock.now() < held.facts_until else {},
                tokens=None if bucket is None else (bucket.tokens, clock.monotonic() - bucket.at, bucket.rate),
                memory=(0, 0),
            )

    def note(self, facts: Mapping[str, Any], *, seconds: float) -> None:
        with self._server.changed:
            held = self._now_held()
            held.facts, held.facts_until = dict(facts), self._server.clock.now() + seconds

    def memory(self) -> tuple[int, int]:
        with self._server.changed:
            self._server.content()
            return 0, 0
