"""Pictures for docs/."""

import io
from pathlib import Path

from PIL import Image


def save_image(png: bytes, path: Path) -> None:
    """Write a PNG as small as it gets without losing a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(path, optimize=True)
