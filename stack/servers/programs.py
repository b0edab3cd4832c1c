"""Where the programs of servers are: in the checkout or package of Sluice, and in wheels."""

import importlib.util
from pathlib import Path
from typing import Final

from pipeline.running import IS_CHECKOUT
from stack.servers.errors import ServerError

ROOT: Final = Path(__file__).resolve().parents[2]


def package_folder(module: str, package: str) -> Path:
    """Folder of an installed package that is used for its data only: it is not imported. Raises ServerError."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        remedy = "run ./run.sh or ./test.sh, which install it" if IS_CHECKOUT else f"pip install {package}"
        raise ServerError(f"the package {package} is not installed: {remedy}")
    return Path(spec.origin).parent
