"""Middleware for ASGI applications (Starlette, FastAPI, Django, Quart, …): events get the id of their request."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sluice_client import context
from sluice_client.requests import RequestIds

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class AsgiMiddleware:
    """Binds the ids of each request and WebSocket, and adds `X-Request-ID` to responses that have none.

    The request id is the client's own `X-Request-ID`, or a new one. The correlation id is the trace id of `traceparent`
    (W3C Trace Context), or else the request id.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        ids = RequestIds.of(given.get(b"x-request-id"), given.get(b"traceparent"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"x-request-id" for name, _ in headers):
                    message = {**message, "headers": [*headers, (b"x-request-id", ids.request.encode())]}
            await send(message)

        with context.bound(correlation=ids.correlation, request=ids.request):
            await self._app(scope, receive, send_with_id)
