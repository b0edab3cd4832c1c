"""The interface of the circuit breaker around the sink."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Breaker(Protocol):
    """Lets calls through, counts consecutive failures, and refuses calls after too many of them."""

    def call(self, function: Callable[[], T], *, stores: bool = True) -> T:
        """Run `function`. Only SinkUnavailableError counts as a failure; the breaker re-raises it.

        A success resets the count of consecutive failures only if the function stores something. A look-up also
        succeeds while a table is locked or a disk is full, so it proves nothing about writes.

        Raises BreakerOpenError without a call if the breaker is open. Also raises BreakerOpenError after the failure
        that opened the breaker.
        """

    @property
    def is_open(self) -> bool:
        """Whether the breaker refuses calls."""
