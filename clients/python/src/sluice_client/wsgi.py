"""Middleware for WSGI applications (Flask, Django, …): events get the id of their request."""

import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sluice_client import context
from sluice_client.requests import RequestIds

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class WsgiMiddleware:
    """Binds the ids of each request, and adds `X-Request-ID` to responses that have none.

    The request id is the client's own `X-Request-ID`, or a new one. The correlation id is the trace id of `traceparent`
    (W3C Trace Context), or else the request id. A body that is produced while it is sent has the ids too.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        ids = RequestIds.of(environ.get("HTTP_X_REQUEST_ID"), environ.get("HTTP_TRACEPARENT"))

        def start_with_id(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if not any(name.lower() == "x-request-id" for name, _ in headers):
                headers = [*headers, ("X-Request-ID", ids.request)]
            return start_response(status, headers, *rest)

        own = contextvars.copy_context()
        own.run(context.correlation_id.set, ids.correlation)
        own.run(context.request_id.set, ids.request)
        body = own.run(self._app, environ, start_with_id)
        # A list is complete already. Servers look at its length.
        return body if isinstance(body, list | tuple) else _Body(body, own)


class _Body:
    """A response body whose parts are produced in the context of their request."""

    def __init__(self, body: Iterable[bytes], own: contextvars.Context) -> None:
        self._body = body
        self._parts: Iterator[bytes] = own.run(iter, body)
        self._own = own

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._own.run(next, self._parts)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._own.run(close)
