"""The circuit breaker around the sink, as its users see it."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Breaker(Protocol):
    """Lets calls through, counts consecutive failures, and refuses calls after too many of them."""

    def call(self, function: Callable[[], T], *, stores: bool = True) -> T:
        """Run `function`. Only SinkUnavailableError counts as a failure, and is raised on.

        A success ends a row of failures only where the function stores something: a look-up that succeeds says nothing
        of a table that is locked, or of a disk that is full.

        Raises BreakerOpenError instead of calling where the breaker is open, and after the failure that opened it.
        """

    @property
    def is_open(self) -> bool:
        """Whether calls are refused."""
