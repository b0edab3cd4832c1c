"""The ids of the work that a thread or task does now. Events take them, unless they have ids of their own."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

correlation_id: Final[ContextVar[str | None]] = ContextVar("sluice_correlation_id", default=None)
request_id: Final[ContextVar[str | None]] = ContextVar("sluice_request_id", default=None)
_IDS: Final = "_sluice_ids"  # of an exception: the ids with which it was raised


@contextlib.contextmanager
def bound(*, correlation: str | None = None, request: str | None = None) -> Iterator[None]:
    """Events within the block get these ids. An id that is None stays as it is outside.

    An exception that leaves the block keeps them: a server often logs it outside of the request.
    """
    tokens = [
        (variable, variable.set(value))
        for variable, value in ((correlation_id, correlation), (request_id, request))
        if value is not None
    ]
    try:
        yield
    except Exception as error:
        if not hasattr(error, _IDS):  # the innermost block has the ids
            with contextlib.suppress(AttributeError, TypeError):  # a class with slots
                setattr(error, _IDS, (correlation_id.get(), request_id.get()))
        raise
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


def bound_as(error: BaseException | None) -> contextlib.AbstractContextManager[None]:
    """Bind the ids with which an exception was raised, unless this thread or task has ids of its own."""
    if request_id.get() is not None or correlation_id.get() is not None:
        return contextlib.nullcontext()
    correlation, request = getattr(error, _IDS, (None, None))
    return bound(correlation=correlation, request=request)
