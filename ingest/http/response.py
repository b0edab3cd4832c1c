"""Encodes responses: heads and bodies in one place, and the web framework's own errors in the single error form."""

import re
from collections.abc import Collection
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from sanic import exceptions as sanic_errors
from sanic.response import HTTPResponse

from ingest.errors import ErrorRow, error_response, row_of, row_with
from ingest.types import Response

_STATUS_LINES: Final = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode() for one in HTTPStatus}
_HEADER_LINES: Final = re.compile(r"(?:[!-9;-~]+: [ -~\t]*\r\n)*")
_KEEP_ALIVE: Final = b"connection: keep-alive\r\n"
_CLOSE: Final = b"connection: close\r\n"
_STARTS_KEPT: Final = 256  # most responses are of few forms and lengths
_CODES: Final[dict[type[BaseException], str]] = {
    sanic_errors.RequestTimeout: "timeout",
    sanic_errors.PayloadTooLarge: "too_large",
    sanic_errors.ExpectationFailed: "expectation_failed",
    sanic_errors.NotFound: "not_found",
    sanic_errors.MethodNotAllowed: "method_not_allowed",
    sanic_errors.BadRequest: "bad_request",
    sanic_errors.URITooLong: "uri_too_long",
    # Sanic stopped waiting for the handler: it is unknown whether the events are stored.
    sanic_errors.ServiceUnavailable: "indeterminate",
    sanic_errors.RequestCancelled: "indeterminate",
}


def head_of(
    status: int,
    media_type: str,
    length: int,
    headers: Collection[tuple[str, str]],
    *,
    keep_alive: bool,
) -> bytes:
    """The head of a response up to its last header, without the empty line.

    Raises ValueError for a header with a line break.
    """
    start = _start_of(status, media_type, length, keep_alive)
    if not headers:
        return start
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if "\n" in fields and _HEADER_LINES.fullmatch(fields) is None:
        raise ValueError(f"a header of the response has a line break: {fields!r}")
    return start + fields.encode("ascii")


@lru_cache(maxsize=_STARTS_KEPT)
def _start_of(status: int, media_type: str, length: int, keep_alive: bool) -> bytes:
    # RFC 9110, 8.6: a 204 has no length.
    content = "" if status == 204 else f"content-type: {media_type}\r\ncontent-length: {length}\r\n"
    return _STATUS_LINES[status] + (_KEEP_ALIVE if keep_alive else _CLOSE) + content.encode()


def whole(head: bytes, request_id: bytes, body: bytes, cors: bytes = b"") -> bytes:
    """A whole response to a request with an id; `cors` are further lines of its head."""
    return b"%b%bx-request-id: %b\r\n\r\n%b" % (head, cors, request_id, body)


def code_row(error: BaseException) -> ErrorRow:
    """The row of any error: of Sluice's own table, or of the framework's errors."""
    for base in type(error).__mro__:
        code = _CODES.get(base)
        if code is not None:
            return row_with(code)
    return row_of(error)


def response_to(error: BaseException, request_id: str = "") -> Response:
    """The response to any error, including the framework's own. Logs a defect with the request's id."""
    response = error_response(error, request_id, row=code_row(error))
    if isinstance(error, sanic_errors.SanicException):
        more = {name.lower(): str(value) for name, value in error.headers.items()}
        return Response(response.status, response.body, response.media_type, {**more, **response.headers})
    return response


def to_sanic(response: Response) -> HTTPResponse:
    """The same as the framework's object, for handlers on the framework's path."""
    return HTTPResponse(
        response.body, status=response.status, headers=dict(response.headers), content_type=response.media_type
    )
