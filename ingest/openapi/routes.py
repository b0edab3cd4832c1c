"""The routes of the contract: `/openapi.json` and `/docs`. Both are made once, and answered with an ETag."""

import hashlib
from functools import lru_cache
from typing import Final

import msgspec
from sanic.response import HTTPResponse

from ingest.http.routes import IngestApp, IngestRequest
from ingest.openapi.curl import origin_of
from ingest.openapi.document import HTML, openapi_document
from ingest.openapi.page import load_style, render
from pipeline.settings import Settings

_PAGES_KEPT_MAX: Final = 16  # one for each address that clients use for this ingest
_SAFE: Final = {
    "cache-control": "no-cache",  # cache it, but revalidate: settings and address may change
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def add_contract(app: IngestApp, settings: Settings) -> None:
    """Add both; they are made on the first request."""
    local = f"http://{settings.ingest_host}:{settings.ingest_port}"
    style = load_style()

    @lru_cache(maxsize=1)
    def document() -> bytes:
        return msgspec.json.format(msgspec.json.encode(openapi_document(settings)), indent=1)

    @lru_cache(maxsize=_PAGES_KEPT_MAX)
    def page(origin: str) -> bytes:
        return render(openapi_document(settings), origin, style).encode()

    async def get_openapi(request: IngestRequest) -> HTTPResponse:
        """The contract for programs."""
        return _answer(request, document(), "application/json", _SAFE)

    async def get_docs(request: IngestRequest) -> HTTPResponse:
        """The contract for people."""
        headers = request.headers
        origin = origin_of(headers.get("host"), headers.get("x-forwarded-proto"), otherwise=local)
        more = {"content-security-policy": style.policy, "cross-origin-opener-policy": "same-origin"}
        return _answer(request, page(origin), HTML, _SAFE | more)

    app.add_route(get_openapi, "/openapi.json", methods=["GET", "HEAD"], name="openapi")
    app.add_route(get_docs, "/docs", methods=["GET", "HEAD"], name="docs")


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
