"""Removes variables of other programs from the environment: they must not affect Sluice's own programs.

A shell has settings of all programs that its user runs. Several libraries read theirs at import or at the first call,
whatever the code passes to them.
"""

import re
from collections.abc import MutableMapping
from typing import Final

# All of our programs connect to servers by address, and none through a proxy.
_PROXIES: Final = r"(https?|ftp|all|no)_proxy"
# Celery's command line reads each of its options from the first kind, and its application from the others.
_CELERY: Final = r"CELERY_\w+|BROKER_URL|RESULT_BACKEND|LOADER|CONFIG_MODULE|SKIP_CHECKS|APP|KOMBU_\w+"
_LIBRARIES: Final = r"SANIC_\w+|PROMETHEUS_MULTIPROC_DIR"
_LOCALE: Final = r"LANG|LANGUAGE|LC_\w+"
# The variables that every process of Sluice ignores, except a password that should not be in a URL.
_LIBPQ: Final = r"PG(?!PASSWORD$|PASSFILE$)[A-Z]+"
_OTHERS: Final = re.compile(f"(?i:{_PROXIES})|{_CELERY}|{_LIBRARIES}|{_LOCALE}|{_LIBPQ}")

# A locale that every system has, and that supports all characters.
LOCALE: Final = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}


def clear(environ: MutableMapping[str, str]) -> None:
    """Remove variables of other programs, and set a locale that exists."""
    for name in list(environ):
        if _OTHERS.fullmatch(name):
            del environ[name]
    environ.update(LOCALE)
