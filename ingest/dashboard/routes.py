"""The routes of the live page: `/`, `/assets/…` and `/events`."""

from typing import Final

from sanic.exceptions import NotFound
from sanic.response import HTTPResponse

from ingest.dashboard.assets import load_assets
from ingest.dashboard.sse import Viewers
from ingest.errors import NotReadyError
from ingest.http.response import response_to, to_sanic
from ingest.http.routes import IngestApp, IngestRequest

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def add_pages(app: IngestApp, viewers: Viewers) -> None:
    """Add the page, its files and its stream."""
    assets = load_assets()

    async def get_page(_request: IngestRequest) -> HTTPResponse:
        """The live page."""
        headers = _SAFE | {"cache-control": "no-store"}
        return HTTPResponse(assets.page, content_type="text/html; charset=utf-8", headers=headers)

    async def get_asset(_request: IngestRequest, name: str) -> HTTPResponse:
        """A file of the page; its name changes with its content."""
        asset = assets.by_name.get(name)
        if asset is None:
            raise NotFound
        headers = _SAFE | {"cache-control": "public, max-age=31536000, immutable"}
        return HTTPResponse(asset.content, content_type=asset.media_type, headers=headers)

    async def get_events(request: IngestRequest) -> HTTPResponse | None:
        """The stream of the page: server-sent events, first a snapshot and then a message a second."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
        if request.method == "HEAD":
            return HTTPResponse(b"", content_type="text/event-stream", headers=headers)
        try:
            viewer = viewers.join()
        except NotReadyError as error:
            return to_sanic(response_to(error))
        try:
            response = await request.respond(content_type="text/event-stream; charset=utf-8", headers=headers)
            async for message in viewer.messages():
                await response.send(message)
            await response.eof()
        finally:
            viewers.leave(viewer)
        return None

    app.add_route(get_page, "/", methods=["GET", "HEAD"], name="page")
    app.add_route(get_asset, "/assets/<name:str>", methods=["GET", "HEAD"], name="asset")
    app.add_route(get_events, "/events", methods=["GET", "HEAD"], name="page_events")

    @app.before_server_stop
    async def end_streams(_app: IngestApp) -> None:
        viewers.end_streams()
