"""The ids of the work that a thread or task does now. Events take them, unless they have ids of their own."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

correlation_id: Final[ContextVar[str | None]] = ContextVar("sluice_correlation_id", default=None)
request_id: Final[ContextVar[str | None]] = ContextVar("sluice_request_id", default=None)


@contextlib.contextmanager
def bound(*, correlation: str | None = None, request: str | None = None) -> Iterator[None]:
    """Events within the block get these ids. An id that is None stays as it is outside."""
    tokens = [
        (variable, variable.set(value))
        for variable, value in ((correlation_id, correlation), (request_id, request))
        if value is not None
    ]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)
