"""The environment of this process beside settings: whether it names a system, and variables of other programs."""

import os
import re
import sys
from typing import Final

from pipeline.running import nothing_to_ask, stopped_system
from pipeline.settings.misspelled import misspelled_in

_LIBPQ: Final = re.compile(r"PG[A-Z]+")
# What libpq may still take from the environment: a password that should not be part of a URL.
_LIBPQ_KEPT: Final = frozenset({"PGPASSWORD", "PGPASSFILE"})
_NO_DOCSTRINGS: Final = 2  # PYTHONOPTIMIZE from which on there are none


def no_system_to_ask() -> str | None:
    """The reason why a command in this shell has no system to read, in one line; None if it has one."""
    return nothing_to_ask(os.environ)


def system_that_was_stopped() -> str | None:
    """The system whose addresses this shell has, in one line, if it does not run; else None."""
    return stopped_system(os.environ)


def misspelled_settings() -> str | None:
    """The variables of this process that are probably misspelled settings, in one line; None if there are none."""
    return misspelled_in(os.environ)


def ignore_variables_of_others() -> str | None:
    """Remove variables that would change what this process does; returns a line that names them.

    Another application's CELERY_BROKER_URL in the shell would send our tasks to its broker, and the prefix CELERY_ sets
    each option of the command line. PGSERVICE, PGHOSTADDR or PGOPTIONS would select another database than DATABASE_URL,
    or change how it behaves. PROMETHEUS_MULTIPROC_DIR would keep metrics in files of another program. Sluice takes all
    that it needs from its settings or the command line.
    """
    found = sorted(
        name
        for name in os.environ
        if name.startswith("CELERY_")
        or (_LIBPQ.fullmatch(name) and name not in _LIBPQ_KEPT)
        or name.upper() == "PROMETHEUS_MULTIPROC_DIR"
    )
    for name in found:
        del os.environ[name]
    if not found:
        return _removed_texts()
    told = f"ignored, since Sluice's settings decide (docs/settings.md): {', '.join(found)}"
    if any(_LIBPQ.fullmatch(name) for name in found):
        told += "; settings of PostgreSQL's client belong into DATABASE_URL, as in ?sslmode=require"
    return "; ".join(filter(None, (told, _removed_texts())))


def _removed_texts() -> str | None:
    """The line about a Python that removed all docstrings: default messages of errors come from them."""
    if sys.flags.optimize < _NO_DOCSTRINGS:
        return None
    return f"PYTHONOPTIMIZE={sys.flags.optimize} removes the texts of messages: unset it"
