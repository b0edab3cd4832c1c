"""Converts errors to HTTP responses: the only table of statuses, and the single JSON form of errors.

    {"error": {"code": "...", "message": "...", ...details}}

A row has the status and the code of an error class, and whether the client should repeat the request later. An error
without a row, of its class or its bases, is a defect: 500. No input of a client may cause it.
"""

import logging
import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec

from ingest.types import Response
from pipeline.errors import (
    LogIndeterminateError,
    LogMisconfiguredError,
    OverloadedError,
    PermanentError,
    RecoverableError,
    SluiceError,
)
from pipeline.names import KeyRefusal, LimitedBy, OperatorRefusal

logger = logging.getLogger(__name__)

UNAVAILABLE_RETRY_SECONDS: Final = 1.0  # if an error has no time to wait of its own
PROBLEMS_MAX: Final = 20  # of a body, in one answer
CHALLENGE: Final = 'Bearer realm="sluice", Basic realm="sluice"'  # of a 401 (RFC 9110, 11.6.1)
OPERATOR_CHALLENGE: Final = 'Basic realm="sluice operators", charset="UTF-8"'  # browsers ask for the password
NAME_CHARS_MAX: Final = 64  # of a client's own text that an answer repeats


class RequestError(PermanentError):
    """The request can't be taken as it is."""

    hint: str = ""  # what the client probably intended

    @property
    def details(self) -> dict[str, Any]:
        """The fields of the answer beside code and message."""
        return {}


class MalformedBodyError(RequestError):
    """The body is not JSON in UTF-8.

    `byte` counts from 0 in the (inflated) body, `line` from 1; None if the place is unknown.
    """

    def __init__(self, message: str, *, byte: int | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.byte = byte
        self.line = line

    @property
    def details(self) -> dict[str, Any]:
        return {"byte": self.byte, "line": self.line}


class Problem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why one event is rejected: its index in the body, the field (None: the whole event), and the reason."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    field: str | None
    reason: str


class InvalidEventsError(RequestError):
    """The body is JSON, but not one or more events."""

    def __init__(self, message: str, problems: list[Problem]) -> None:
        super().__init__(message)
        self.problems = problems[:PROBLEMS_MAX]

    @property
    def details(self) -> dict[str, Any]:
        return {"errors": self.problems}


class BodyTooLargeError(RequestError):
    """The body or batch is larger than the limit. `unit` is `bytes` or `events`."""

    def __init__(self, limit: int, unit: str) -> None:
        super().__init__(f"the body is larger than {limit} {unit}" + (", inflated" if unit == "bytes" else ""))
        self.limit = limit
        self.unit = unit

    @property
    def details(self) -> dict[str, Any]:
        return {"limit": self.limit, "unit": self.unit}


class UnsupportedBodyError(RequestError):
    """The media type or content coding is not one that is taken."""

    @property
    def details(self) -> dict[str, Any]:
        return {"accepted": ["application/json", "application/x-ndjson"], "codings": ["gzip", "identity"]}


class UnsupportedFormatError(RequestError):
    """The query names a format that does not exist."""


class HeadTooLargeError(RequestError):
    """The request line and headers are larger than the limit."""


class KeyRefusedError(SluiceError):
    """The request was refused for its API key."""

    def __init__(self, reason: KeyRefusal, words: str | None = None) -> None:
        # The words are fixed: looking for secrets in them would only make a 401 more expensive.
        Exception.__init__(self, words or reason.words)
        self.reason = reason


class UnauthorizedError(KeyRefusedError, RequestError):
    """The request has no valid API key."""


class ForbiddenError(KeyRefusedError, RequestError):
    """The request has a valid API key, which is for other protocols."""


class KeysUnknownError(KeyRefusedError, RecoverableError):
    """This process does not know the API keys yet."""

    def __init__(self) -> None:
        super().__init__(KeyRefusal.NOT_READY)


class OperatorRefusedError(RequestError):
    """The request is for an operators' address, and does not have the operators' password."""

    def __init__(self, reason: OperatorRefusal) -> None:
        super().__init__(reason.words)
        self.reason = reason


class NotReadyError(RecoverableError):
    """This process does not take events now."""


class PartlyStoredError(LogIndeterminateError):
    """Some events of the body are durable, and others may not be.

    `unconfirmed` has the indices of the others in the body. If the client repeats only these, it pays for no event that
    is durable already. If it repeats the whole body, the durable events are stored once, but paid for twice.
    """

    def __init__(self, unconfirmed: list[int], count: int, reason: str) -> None:
        super().__init__(f"{count - len(unconfirmed)} of {count} events are durable, repeat the others: {reason}")
        self.unconfirmed = unconfirmed

    @property
    def details(self) -> dict[str, Any]:
        """The fields of the answer beside code and message."""
        return {"unconfirmed": self.unconfirmed}


_WHOLE_RATE_MIN: Final = 10.0  # events/s: a larger rate is shown without a fraction
_USED_UP: Final = {
    LimitedBy.LEVEL: "the rest of the admitted rate is for higher levels",
    LimitedBy.SHARE: "the account's share of the admitted rate, or its limit, is used up",
}


class RateLimitedError(OverloadedError):
    """The admitted rate is used up.

    Beside the time to wait it has the values of the RateLimit headers (the quota in events/s, which may be a part of
    one, and what is left), and what set this limit since when (seconds since the epoch).
    """

    def __init__(
        self,
        retry_after_seconds: float,
        *,
        quota: float,
        left: int,
        limited_by: LimitedBy = LimitedBy.RATE,
        since: float = 0.0,
    ) -> None:
        super().__init__(
            _USED_UP.get(limited_by, "the admitted rate is used up"), retry_after_seconds=retry_after_seconds
        )
        self.quota = quota
        self.left = left
        self.limited_by = limited_by
        self.since = since

    @property
    def details(self) -> dict[str, Any]:
        """The fields of the answer beside code and message."""
        since = datetime.fromtimestamp(int(self.since), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"limitedBy": self.limited_by.value, "limit": _shown(self.quota), "since": since}


def _shown(rate: float) -> float:
    """A rate as clients get it, events/s: whole, or with its first digits if it is small."""
    if rate >= _WHOLE_RATE_MIN:
        return int(rate)
    shown = float(f"{rate:.3g}")
    return int(shown) if shown.is_integer() else shown


def _policy(rate: float) -> str:
    """A rate as quota and window (seconds) of the header RateLimit-Policy, both whole."""
    return f"q={int(rate)};w=1" if rate >= 1 or rate <= 0 else f"q=1;w={math.ceil(1 / rate)}"


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """The response of an error. `retryable`: the client should repeat the request after Retry-After seconds."""

    status: int
    code: str
    retryable: bool = False


_TABLE: Final[dict[type[BaseException], ErrorRow]] = {
    MalformedBodyError: ErrorRow(400, "malformed"),
    InvalidEventsError: ErrorRow(422, "invalid"),
    BodyTooLargeError: ErrorRow(413, "too_large"),
    UnsupportedBodyError: ErrorRow(415, "unsupported_media_type"),
    UnsupportedFormatError: ErrorRow(400, "bad_request"),
    UnauthorizedError: ErrorRow(401, "unauthorized"),
    OperatorRefusedError: ErrorRow(401, "unauthorized"),
    ForbiddenError: ErrorRow(403, "forbidden"),
    HeadTooLargeError: ErrorRow(431, "headers_too_large"),
    KeysUnknownError: ErrorRow(503, "unavailable", retryable=True),
    NotReadyError: ErrorRow(503, "unavailable", retryable=True),
    RateLimitedError: ErrorRow(429, "rate_limited", retryable=True),
    LogIndeterminateError: ErrorRow(503, "indeterminate", retryable=True),
    LogMisconfiguredError: ErrorRow(503, "unavailable", retryable=True),
    OverloadedError: ErrorRow(503, "unavailable", retryable=True),
    RecoverableError: ErrorRow(503, "unavailable", retryable=True),
}
# Rows of the web framework's own errors, which `ingest.http.response` finds by class.
FRAMEWORK_ROWS: Final = {
    row.code: row
    for row in (
        ErrorRow(408, "timeout"),
        ErrorRow(417, "expectation_failed"),
        ErrorRow(404, "not_found"),
        ErrorRow(405, "method_not_allowed"),
        ErrorRow(400, "bad_request"),
        ErrorRow(414, "uri_too_long"),
    )
}
_DEFECT: Final = ErrorRow(500, "internal")
_ROWS: Final = {row.code: row for row in _TABLE.values()} | FRAMEWORK_ROWS
_MESSAGES: Final = {  # for errors whose own text has less information, or repeats what the client sent
    "not_found": "this address does not exist on this port; events go to POST /api/logs on INGEST_PORT",
    "timeout": "headers and body did not arrive within the time allowed",
    "internal": "a defect of the server; it is unknown which events are stored",
}


def row_of(error: BaseException) -> ErrorRow:
    """The row of an error's class, or of its nearest base; the row of a defect if there is none."""
    for base in type(error).__mro__:
        row = _TABLE.get(base)
        if row is not None:
            return row
    return _DEFECT


def rows_by_code() -> dict[str, ErrorRow]:
    """Every code that a response may have, with its row; without the row of a defect."""
    return dict(_ROWS)


def row_with(code: str) -> ErrorRow:
    """The row with this code. Raises KeyError for a code that is not in the table."""
    return _ROWS[code]


def status_of(code: str) -> int:
    """The status of an error's code; 202 for `accepted`."""
    if code == "accepted":
        return 202
    row = _ROWS.get(code, _DEFECT)
    return row.status


def whole_seconds(seconds: float, *, draw: float, seconds_max: float = math.inf) -> int:
    """A Retry-After of at least one second: seconds + U(0, max(1, seconds)), rounded up.

    The random part spreads clients that were rejected together over as long a time as they had to wait. `draw` is a
    random number from [0, 1). The result is never shorter than `seconds`, unless it is above `seconds_max`: for a
    protocol whose clients drop events instead of waiting longer.
    """
    whole = max(1, math.ceil(seconds + draw * max(1.0, seconds)))
    return whole if whole <= seconds_max else max(1, int(seconds_max))


def error_body(code: str, message: str, details: dict[str, Any] | None = None) -> bytes:
    """Encode the JSON form of an error."""
    return msgspec.json.encode({"error": {"code": code, "message": message, **(details or {})}})


def error_response(
    error: BaseException, request_id: str = "", *, row: ErrorRow | None = None, retry_seconds_max: float = math.inf
) -> Response:
    """The response to an error. Logs a defect, with the id of its request.

    `row` is the row of an error that is not in this table. `retry_seconds_max` limits the Retry-After, see
    `whole_seconds`.
    """
    row = row or row_of(error)
    if row is _DEFECT:
        extra = {"action": "request_failed", "request_id": request_id}
        logger.error(
            "a request failed because of a defect: %s", request_id or "not readable", exc_info=error, extra=extra
        )
    headers: dict[str, str] = {}
    details = error.details if isinstance(error, RequestError | PartlyStoredError | RateLimitedError) else {}
    if row.retryable:
        wait_seconds = error.retry_after_seconds if isinstance(error, OverloadedError) else UNAVAILABLE_RETRY_SECONDS
        draw = random.random()  # noqa: S311  # spreads clients, no secret
        retry_after = whole_seconds(wait_seconds, draw=draw, seconds_max=retry_seconds_max)
        headers["retry-after"] = str(retry_after)
        if isinstance(error, RateLimitedError):
            # draft-ietf-httpapi-ratelimit-headers-10; the unit is events, which is not a registered one.
            headers["ratelimit-policy"] = f'"events";{_policy(error.quota)}'
            headers["ratelimit"] = f'"events";r={error.left};t={retry_after}'
    elif isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = CHALLENGE
    elif isinstance(error, OperatorRefusedError):
        headers["www-authenticate"] = OPERATOR_CHALLENGE
    elif isinstance(error, UnsupportedBodyError):
        headers["accept-encoding"] = "gzip"  # RFC 9110, 15.5.16
    message = _MESSAGES.get(row.code) or str(error) or HTTPStatus(row.status).phrase
    if isinstance(error, RequestError) and error.hint:
        message += f"; {error.hint}"
    return Response(row.status, error_body(row.code, message, details), headers=headers)
