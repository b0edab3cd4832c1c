"""Pictures for docs/: as small as a screenshot of flat colours can be."""

import io
from pathlib import Path

from PIL import Image


def save_image(png: bytes, path: Path) -> None:
    """Write a PNG with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").quantize(colors=160, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
