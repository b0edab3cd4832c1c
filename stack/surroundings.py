"""Removes variables of other programs from the environment: they must not affect Sluice's own programs.

A shell has settings of all programs that its user runs. Several libraries read theirs at import or at the first call,
whatever the code passes to them.
"""

import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

# All of our programs connect to servers by address, and none through a proxy.
_PROXIES: Final = r"(https?|ftp|all|no)_proxy"
# Celery's command line reads each of its options from the first kind, and its application from the others.
_CELERY: Final = r"CELERY_\w+|BROKER_URL|RESULT_BACKEND|LOADER|CONFIG_MODULE|SKIP_CHECKS|APP|KOMBU_\w+"
_LIBRARIES: Final = r"SANIC_\w+|(?i:PROMETHEUS_MULTIPROC_DIR)"
_LOCALE: Final = r"LANG|LANGUAGE|LC_\w+"
# The variables that every process of Sluice ignores, except a password that should not be in a URL.
_LIBPQ: Final = r"PG(?!PASSWORD$|PASSFILE$)[A-Z]+"
_OTHERS: Final = re.compile(f"(?i:{_PROXIES})|{_CELERY}|{_LIBRARIES}|{_LOCALE}|{_LIBPQ}")
# Flower reads all of its options from variables. With another one's FLOWER_URL_PREFIX it is not where it is looked for.
_FLOWER: Final = re.compile(r"FLOWER_(?!(PORT|HOST|URL|BASIC_AUTH)$)\w+")
# PYTHONSAFEPATH hides a checkout's modules, PYTHONINSPECT keeps programs from ending. The interpreter that runs this
# works with its PYTHONHOME.
_INTERPRETERS: Final = re.compile(r"PYTHON(?!HOME$|PATH$)[A-Z][A-Z0-9]*|JDK_JAVA_OPTIONS")
_HERE: Final = Path(__file__).resolve().parent.parent

# A locale that every system has, and that supports all characters.
LOCALE: Final = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}


def clear(environ: MutableMapping[str, str]) -> list[str]:
    """Remove variables of other programs, and set a locale that exists.

    Returns the names of those that somebody may have meant for Sluice: options of Flower.
    """
    of_flower = sorted(name for name in environ if _FLOWER.fullmatch(name))
    for name in list(environ):
        if _OTHERS.fullmatch(name) or name in of_flower:
            del environ[name]
    environ.update(LOCALE)
    return of_flower


def clear_interpreters(environ: MutableMapping[str, str]) -> None:
    """Remove what changes how Python and Java run, for the programs that are started.

    PYTHONPATH stays if this code was found by it: the packages may be there too.
    """
    for name in list(environ):
        if _INTERPRETERS.fullmatch(name):
            del environ[name]
    if str(_HERE) not in environ.get("PYTHONPATH", "").split(os.pathsep):
        environ.pop("PYTHONPATH", None)
    environ["PYTHONUTF8"] = LOCALE["PYTHONUTF8"]
