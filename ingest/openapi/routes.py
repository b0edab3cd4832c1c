"""The routes of the contract: `/openapi.json` and `/docs`. Both are answered with an ETag."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from sanic.response import HTTPResponse

from ingest.http.assets import Assets, page_headers
from ingest.http.routes import IngestRequest, OperatorRoutes
from ingest.openapi.document import openapi_document
from pipeline.settings import Settings

_FOLDER: Final = Path(__file__).parent / "assets"
_FILES: Final = ("vendor/swagger-ui.js", "vendor/swagger-ui.css", "docs.css", "docs.js", "docs.svg")
_REVALIDATED: Final = {"cache-control": "no-cache"}  # cache it, but revalidate: settings and files may change
_PAGE: Final = page_headers(images="'self' data:") | _REVALIDATED  # the style of Swagger UI has its icons inside
_DOCUMENT: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
} | _REVALIDATED


def add_contract(routes: OperatorRoutes, settings: Settings, assets: Assets) -> None:
    """Add both; the document is made on the first request, and the files of the page go to `assets`."""
    page = assets.load(_FOLDER, "docs.html", _FILES)

    @cache
    def document() -> bytes:
        return msgspec.json.format(msgspec.json.encode(openapi_document(settings)), indent=1)

    async def get_openapi(request: IngestRequest) -> HTTPResponse:
        """The contract for programs."""
        return _answer(request, document(), "application/json", _DOCUMENT)

    async def get_docs(request: IngestRequest) -> HTTPResponse:
        """The contract for people."""
        return _answer(request, page, "text/html; charset=utf-8", _PAGE)

    routes.add(get_openapi, "/openapi.json", name="openapi")
    routes.add(get_docs, "/docs", name="docs")


def _answer(request: IngestRequest, content: bytes, media_type: str, headers: dict[str, str]) -> HTTPResponse:
    """The content, or 304 if the client has it."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    headers = headers | {"etag": etag}
    if _has(request.headers.get("if-none-match", ""), etag):
        return HTTPResponse(status=304, headers=headers)
    return HTTPResponse(content, content_type=media_type, headers=headers)


def _has(if_none_match: str, etag: str) -> bool:
    """Whether the client has this content (RFC 9110, 13.1.2; the comparison is weak)."""
    names = [name.strip().removeprefix("W/") for name in if_none_match.split(",")]
    return etag in names or names == ["*"]
