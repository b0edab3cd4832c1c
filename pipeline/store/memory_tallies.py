"""Counters and facts in memory: for tests and simulation, with the meaning of those on Redis."""

from collections.abc import Mapping
from typing import Any

from pipeline.store.memory import MemoryServer


class MemoryTallies:
    """See Tallies."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self._server = server or MemoryServer()
        self._counters: dict[str, float] = {}
        self._facts: tuple[float, dict[str, Any]] = (0.0, {})

    def add(self, counts: Mapping[str, float]) -> None:
        with self._server.changed:
            self._server.content()
            for name, count in counts.items():
                if count:
                    self._counters[name] = self._counters.get(name, 0.0) + count

    def counters(self) -> dict[str, float]:
        with self._server.changed:
            self._server.content()
            return dict(self._counters)

    def note(self, facts: Mapping[str, Any], *, seconds: float) -> None:
        with self._server.changed:
            self._server.content()
            self._facts = (self._server.clock.now() + seconds, dict(facts))

    def facts(self) -> dict[str, Any]:
        with self._server.changed:
            self._server.content()
            until, facts = self._facts
            return dict(facts) if self._server.clock.now() < until else {}

    def tokens(self) -> tuple[float, float, float] | None:
        with self._server.changed:
            held = self._server.content().bucket
            return None if held is None else (held.tokens, max(0.0, self._server.clock.now() - held.at), held.rate)

    def memory(self) -> tuple[int, int]:
        with self._server.changed:
            self._server.content()
            return 0, 0
