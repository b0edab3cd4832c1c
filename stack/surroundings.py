"""Variables of other programs in the environment, which must not change what Sluice's own programs do.

A shell carries settings of whatever else its user runs. Several libraries read theirs at import or at the first call,
whatever the code passes to them.
"""

import re
from collections.abc import MutableMapping
from typing import Final

# All of our programs speak to servers by address, and none through a proxy.
_PROXIES: Final = r"(https?|ftp|all|no)_proxy"
# Celery's command line takes each of its options from the first kind, and its application from the others.
_CELERY: Final = r"CELERY_\w+|BROKER_URL|RESULT_BACKEND|LOADER|CONFIG_MODULE|SKIP_CHECKS|APP|KOMBU_\w+"
_LIBRARIES: Final = r"SANIC_\w+|PROMETHEUS_MULTIPROC_DIR"
_LOCALE: Final = r"LANG|LANGUAGE|LC_\w+"
# The same as every process of Sluice ignores, but for a password that should stand in no URL.
_LIBPQ: Final = r"PG(?!PASSWORD$|PASSFILE$)[A-Z]+"
_OTHERS: Final = re.compile(f"(?i:{_PROXIES})|{_CELERY}|{_LIBRARIES}|{_LOCALE}|{_LIBPQ}")

# One that every system has, and that writes all characters.
LOCALE: Final = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}


def clear(environ: MutableMapping[str, str]) -> None:
    """Remove variables of other programs, and set a locale that exists."""
    for name in list(environ):
        if _OTHERS.fullmatch(name):
            del environ[name]
    environ.update(LOCALE)
