"""The live page in a headless Chromium, for pictures of it."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_FLAGS: Final = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_COLOURS: Final = 128


def chromium_path() -> str | None:
    """The path of Chromium; None if this machine has none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def open_page(url: str, *, height: int = 1000, password: str = "") -> Iterator[Any]:
    """The page at `url`, in a browser that ends with the block. Use it in one thread only.

    `password` is the operators' password, if there is one.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only pictures need it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=_FLAGS)
        credentials: Any = {"username": "operator", "password": password} if password else None
        page = browser.new_page(
            viewport={"width": 1280, "height": height}, http_credentials=credentials,
            ignore_https_errors=True,  # the page is on this machine, and its certificate is usually for another name
        )  # fmt: skip
        page.goto(url)
        yield page
        browser.close()


def save_picture(png: bytes, path: Path) -> None:
    """Write a PNG with few colours, which is small."""
    from PIL import Image  # noqa: PLC0415 - only pictures need it

    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(_COLOURS).save(path, optimize=True)
