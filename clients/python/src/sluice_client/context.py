"""The ids of the work that a thread or task does now. Events take them, unless they have ids of their own."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

correlation_id: Final[ContextVar[str | None]] = ContextVar("sluice_correlation_id", default=None)
request_id: Final[ContextVar[str | None]] = ContextVar("sluice_request_id", default=None)
# Of the innermost block: the outermost one around it, and its depth in that. It has no link to the blocks between:
# tasks that start each other would keep all of them.
_place: Final[ContextVar[tuple[object, int] | None]] = ContextVar("sluice_place", default=None)
# In an exception's `__dict__`: the place of the innermost block that it left last, and the ids there. All are of
# built-in types: exceptions are pickled, also for programs without this package.
_IDS: Final = "_sluice_ids"
_NO_IDS: Final = (None, None, None)


@contextlib.contextmanager
def bound(*, correlation: str | None = None, request: str | None = None) -> Iterator[None]:
    """Events within the block get these ids. An id that is None stays as it is outside.

    An exception that leaves the block keeps them: a server often logs it outside of the request.
    """
    outermost, depth = outer if (outer := _place.get()) is not None else (object(), -1)
    place = _place.set((outermost, depth + 1))
    tokens = [
        (variable, variable.set(value))
        for variable, value in ((correlation_id, correlation), (request_id, request))
        if value is not None
    ]
    try:
        yield
    except Exception as error:
        # Several requests may raise the same object, such as that of a connection for which all of them wait.
        left, *_ = error.__dict__.get(_IDS, _NO_IDS)
        if left is None or left[0] is not outermost or left[1] <= depth + 1:
            error.__dict__[_IDS] = ((outermost, depth + 1), correlation_id.get(), request_id.get())
        raise
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)
        _place.reset(place)


def bound_as(error: BaseException | None) -> contextlib.AbstractContextManager[None]:
    """Bind the ids with which an exception was raised, unless this thread or task has ids of its own."""
    if request_id.get() is not None or correlation_id.get() is not None:
        return contextlib.nullcontext()
    _, correlation, request = getattr(error, "__dict__", {}).get(_IDS, _NO_IDS)
    return bound(correlation=correlation, request=request)
