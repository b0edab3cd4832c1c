"""The files of the page, read once. Each name has a hash of the content, so that browsers cache it forever."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "assets"
_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES: Final = (
    "vendor/uplot.js",
    "vendor/uplot.css",
    "page.css",
    "format.js",
    "charts.js",
    "page.js",
    "healthy.svg",
    "degraded.svg",
    "critical.svg",
    "unknown.svg",
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One served file."""

    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """Everything that a browser loads. `by_name` has the names below /assets/."""

    page: bytes
    by_name: dict[str, Asset]


def load_assets() -> Assets:
    """Read the files, and replace {{name}} in the page with their names."""
    page = (_FOLDER / "index.html").read_text(encoding="utf-8")
    by_name = {}
    for file in _FILES:
        path = _FOLDER / file
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        name = f"{path.stem}.{digest}{path.suffix}"
        by_name[name] = Asset(content, _TYPES[path.suffix])
        page = page.replace("{{" + path.name + "}}", f"/assets/{name}")
    return Assets(page.encode(), by_name)
