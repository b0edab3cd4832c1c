"""The files of all pages, read once. Each name has a hash of the content, so that browsers cache it forever."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sanic.exceptions import NotFound
from sanic.response import HTTPResponse

from ingest.http.routes import IngestRequest, OperatorRoutes

_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_headers(*, images: str = "'self'") -> dict[str, str]:
    """The security headers of a page and its files. The page may load only files of this origin, and no inline code.

    `images` are the sources of images.
    """
    return {
        "content-security-policy": (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }


@dataclass(frozen=True, slots=True)
class Asset:
    """One served file."""

    content: bytes
    media_type: str


class Assets:
    """The files of the pages; `by_name` has the names below /assets/."""

    def __init__(self) -> None:
        self.by_name: dict[str, Asset] = {}

    def load(self, folder: Path, page: str, files: Iterable[str]) -> bytes:
        """Read a page and its files, and replace {{name}} in the page with their names. Returns the page."""
        text = (folder / page).read_text(encoding="utf-8")
        for file in files:
            path = folder / file
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            name = f"{path.stem}.{digest}{path.suffix}"
            self.by_name[name] = Asset(content, _TYPES[path.suffix])
            text = text.replace("{{" + path.name + "}}", f"/assets/{name}")
        return text.encode()


def add_assets(routes: OperatorRoutes, assets: Assets) -> None:
    """Add the address of the files."""

    async def get_asset(_request: IngestRequest, name: str) -> HTTPResponse:
        """A file of a page; its name changes with its content."""
        asset = assets.by_name.get(name)
        if asset is None:
            raise NotFound
        headers = page_headers() | {"cache-control": "public, max-age=31536000, immutable"}
        return HTTPResponse(asset.content, content_type=asset.media_type, headers=headers)

    routes.add(get_asset, "/assets/<name:str>", name="asset")
