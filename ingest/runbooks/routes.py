"""The routes of the runbooks: `/runbooks` and `/runbooks/NAME`."""

import html
from pathlib import Path
from typing import Final

from sanic.exceptions import NotFound
from sanic.response import HTTPResponse

from ingest.http.assets import Assets, page_headers
from ingest.http.routes import IngestRequest, OperatorRoutes
from ingest.runbooks.pages import ADDRESS, INDEX, Runbooks

_ASSETS: Final = Path(__file__).parent / "assets"
_HEADERS: Final = page_headers() | {"cache-control": "no-cache"}


def add_runbooks(routes: OperatorRoutes, assets: Assets) -> None:
    """Add the index and the pages; their style goes to `assets`."""
    frame = assets.load(_ASSETS, "runbook.html", ("runbook.css", "runbook.svg")).decode()
    runbooks = Runbooks()

    def answer(name: str) -> HTTPResponse:
        page = runbooks.page(name)
        if page is None:
            raise NotFound
        text = frame.replace("{{title}}", html.escape(page.title)).replace("{{body}}", page.body)
        return HTTPResponse(text, content_type="text/html; charset=utf-8", headers=_HEADERS)

    async def get_runbooks(_request: IngestRequest) -> HTTPResponse:
        """The index of the runbooks."""
        return answer(INDEX)

    async def get_runbook(_request: IngestRequest, name: str) -> HTTPResponse:
        """One runbook."""
        return answer(name)

    routes.add(get_runbooks, ADDRESS, name="runbooks")
    routes.add(get_runbook, f"{ADDRESS}/<name:str>", name="runbook")
