"""Counters that processes of all kinds add to, and one of them shows."""

from collections.abc import Mapping
from typing import Any, Protocol


class Tallies(Protocol):
    """Counters and facts of the whole system, outside of any process: a child that dies takes none of them along.

    Counters only grow, and begin anew after a flush; facts are replaced, and forgotten after their time. Every method
    raises StoreUnavailableError where the server does not answer.
    """

    def add(self, counts: Mapping[str, float], *, sender: str, number: int) -> None:
        """Add to counters, in one round trip.

        A sender numbers its additions from 1, and repeats one whose answer was lost with the same number: it is made
        once. That is remembered for minutes after the sender's last addition.
        """

    def counters(self) -> dict[str, float]:
        """All counters."""

    def note(self, facts: Mapping[str, Any], *, seconds: float) -> None:
        """Replace the facts, which are forgotten after `seconds`. Values are what JSON knows."""

    def facts(self) -> dict[str, Any]:
        """The facts, empty where they are forgotten."""

    def tokens(self) -> tuple[float, float, float] | None:
        """The bucket as it was last asked: tokens, seconds since then, and its rate; None where it never was."""

    def memory(self) -> tuple[int, int]:
        """Bytes that the server uses and may use (0: no limit)."""
