"""A folder for PYTHONPATH: see sitecustomize.py in it."""

from pathlib import Path
from typing import Final

LEAN: Final = Path(__file__).parent
