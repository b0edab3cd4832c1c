"""The ids of an HTTP request that a program serves."""

import re
from dataclasses import dataclass
from typing import Final, Self

from sluice_client.ids import uuid7

_ID: Final = re.compile(r"[!-~]{1,128}")  # visible ASCII: nothing that could forge a log line or a header
_TRACE: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(frozen=True, slots=True)
class RequestIds:
    """What the events of a request get."""

    request: str
    correlation: str

    @classmethod
    def of(cls, request_id: str | None, traceparent: str | None) -> Self:
        """The ids by the values of `X-Request-ID` and `traceparent`; an invalid value is ignored."""
        request = request_id if request_id is not None and _ID.fullmatch(request_id) else uuid7()
        trace = _TRACE.fullmatch(traceparent.strip()) if traceparent is not None else None
        return cls(request, trace[1] if trace is not None else request)
