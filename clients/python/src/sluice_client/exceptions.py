"""Exceptions as attributes of events, with OpenTelemetry's names."""

import sys
import traceback
from typing import Final

from sluice_client.events import last_part

STACKTRACE_BYTES_MAX: Final = 5 * 1024  # of the 8 KiB that attributes may have
MESSAGE_CHARS_MAX: Final = 512


def exception_attributes(error: BaseException) -> dict[str, object]:
    """What an event says about an exception."""
    kind = type(error)
    try:
        message = str(error)
    except Exception:  # foreign code
        message = ""
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {
        "exception.type": name,
        "exception.message": message[:MESSAGE_CHARS_MAX],
        "exception.stacktrace": last_part("".join(traceback.format_exception(error)), STACKTRACE_BYTES_MAX),
    }


def raised(exc_info: object) -> BaseException | None:
    """The exception of an `exc_info` argument: true, an exception, or what `sys.exc_info` returns."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return next((one for one in exc_info if isinstance(one, BaseException)), None)
    return sys.exception() if exc_info else None
