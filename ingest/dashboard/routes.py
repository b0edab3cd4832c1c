"""The routes of the live page: `/`, `/events`, and `/charts/…` for hours and days."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from sanic.exceptions import NotFound
from sanic.response import HTTPResponse

from ingest.dashboard.first_sight import first_sight
from ingest.dashboard.longer import LongCharts
from ingest.dashboard.sse import Viewers
from ingest.errors import NotReadyError
from ingest.http.assets import Assets, page_headers
from ingest.http.request import LimitedConnection
from ingest.http.response import response_to, to_sanic
from ingest.http.routes import IngestApp, IngestRequest, OperatorRoutes
from ingest.types import JSON, RequestHead, Response

_FOLDER: Final = Path(__file__).parent / "assets"
_FILES: Final = (
    "vendor/uplot.js",
    "vendor/uplot.css",
    "page.css",
    "format.js",
    "policies.js",
    "charts.js",
    "page.js",
    "healthy.svg",
    "degraded.svg",
    "critical.svg",
    "unknown.svg",
)


def add_pages(
    app: IngestApp,
    routes: OperatorRoutes,
    viewers: Viewers,
    charts: LongCharts,
    assets: Assets,
    *,
    instead: Callable[[RequestHead], Response | None] | None,
) -> None:
    """Add the page and its stream; its files go to `assets`.

    `instead` returns the answer to a client that wants no page at `/`; None if there are no such clients.
    """
    page = assets.load(_FOLDER, "index.html", _FILES).decode()

    async def get_page(_request: IngestRequest) -> HTTPResponse:
        """The live page, with the state of this moment for readers without JavaScript."""
        headers = page_headers() | {"cache-control": "no-store"}
        return HTTPResponse(
            first_sight(page, viewers.document()), content_type="text/html; charset=utf-8", headers=headers
        )

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
                if cast(LimitedConnection, request.protocol).is_ending:  # its client's certificate no longer counts
                    break
            await response.eof()
        finally:
            viewers.leave(viewer)
        return None

    async def get_charts(_request: IngestRequest, span: str) -> HTTPResponse:
        """The charts of hours or days, from Prometheus."""
        try:
            document = await charts.document(span)
        except KeyError:
            raise NotFound from None
        except NotReadyError as error:
            return to_sanic(response_to(error))
        return HTTPResponse(document, content_type=JSON, headers={"cache-control": "no-store"})

    routes.add(get_page, "/", name="page", instead=instead)
    routes.add(get_charts, "/charts/<span:str>", name="page_charts")
    routes.add(get_events, "/events", name="page_events")

    @app.before_server_stop
    async def end_streams(_app: IngestApp) -> None:
        viewers.end_streams()
        charts.close()
