"""Counters that processes of all kinds add to. One process exports them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class CountersRead:
    """All that a scrape shows of the server besides the control state, from one moment.

    A part that the server refuses, or that can't be read, is empty or None; `problems` says why, by the part's name.
    """

    totals: Mapping[str, float]  # all counters
    facts: Mapping[str, Any]  # empty if they have expired
    # The bucket at its last request: tokens, seconds since then, and its rate; None if there was no request
    tokens: tuple[float, float, float] | None
    memory: tuple[int, int] | None  # see Counters.memory
    problems: Mapping[str, str] = field(default_factory=dict)


class Counters(Protocol):
    """Counters and facts of the whole system, kept outside of any process: they survive the death of a child process.

    Counters only grow, and start again at 0 after a flush. Facts are replaced, and expire after their time. Every
    method raises StoreUnavailableError if the server does not answer.
    """

    def add(self, counts: Mapping[str, float], *, sender: str, number: int) -> None:
        """Add to counters, in one round trip.

        A sender numbers its additions from 1. If the response is lost, it repeats the addition with the same number,
        and the store applies it once. The store remembers the number for minutes after the sender's last addition.
        """

    def read(self) -> CountersRead:
        """Everything, in one round trip. A part that is refused does not keep the others from being read."""

    def note(self, facts: Mapping[str, Any], *, seconds: float) -> None:
        """Replace the facts, which expire after `seconds`. Values are JSON values."""

    def memory(self) -> tuple[int, int]:
        """Bytes that the server uses, and its limit (0: no limit)."""
