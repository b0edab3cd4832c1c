"""Variables whose names are nearly those of settings: a misspelled setting would be ignored, and nobody would notice.

A name is compared by difflib's ratio. From 0.875 on are all names with one wrong, missing or more letter. Below
it are names that other programs use, such as POSTGRES_HOST beside POSTGRES_PORT, and LOGURU_LEVEL beside LOG_LEVEL.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Final

from pipeline.settings.settings import Settings

_RATIO_MIN: Final = 0.875
_LETTERS_MAX: Final = 2  # more or less than the name has
_PREFIX: Final = "SLUICE_"
_FILE: Final = "_FILE"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SETTINGS: Final = {field.name.upper(): bool(field.metadata["is_secret"]) for field in dataclasses.fields(Settings)}
# Names that are no settings of these processes, and that other parts read: ./run.sh and its checks, docker-compose.yml
# and its .env, Flower's configuration, and the client for Python.
_OF_OTHER_PARTS: Final = """
    ALERTMANAGER_BIND BATCHES_METRICS_PORT CONTROL_METRICS_PORT DOCS_PORT DRAIN_PROCESSES EDGE_SUBNET FLOWER_ADDRESS
    FLOWER_BASIC_AUTH FLOWER_BIND FLOWER_HOST FLOWER_PORT FLOWER_URL GRAFANA_BIND INGEST_BIND INGEST_PROCESSES
    KAFKA_BOOTSTRAP_SERVERS KAFKA_CONTROLLER_PORT KAFKA_PORT LOG_REDIS_PORT OPERATOR_BIND OPERATOR_URL PORT_BASE
    POSTGRES_PORT PROMETHEUS PROMETHEUS_PORT PROMETHEUS_SECONDS REDIS_PORT SLUICE_API_KEY
    SLUICE_FLOWER_BASIC_AUTH_FILE SLUICE_HOME SLUICE_SYSTEM SLUICE_URL
"""
OF_OTHER_PARTS: Final = frozenset(_OF_OTHER_PARTS.split())
_KNOWN: Final = OF_OTHER_PARTS | {*_SETTINGS, *(f"{name}{_FILE}" for name, is_secret in _SETTINGS.items() if is_secret)}
_CANDIDATES: Final = sorted(_KNOWN)
# With these at their end, names of other programs are as near to ours as misspelled ones.
_LAST_WORDS: Final = frozenset({"DB", "DIR", "HOME", "HOST", "NAME", "PASS", "PATH", "PORT", "USER"})
# Names that many other programs use, and that are as near as a misspelled one.
_OF_OTHER_PROGRAMS: Final = frozenset({"LOGLEVEL", "LOGFORMAT", "POSTGRESQL_PORT"})


def meant_by(name: str) -> str | None:
    """The setting that a variable's name was probably meant for; None if it is one, or is near to none."""
    if name in _KNOWN or name in _OF_OTHER_PROGRAMS or not _NAME.fullmatch(name):
        return None
    upper = name.upper()
    if upper in _KNOWN:
        return upper
    if upper.removesuffix(_FILE) in _SETTINGS:
        return upper.removesuffix(_FILE)  # only secrets can be in files
    if upper.startswith(_PREFIX) and upper.removeprefix(_PREFIX) in _KNOWN:
        return upper.removeprefix(_PREFIX)
    near = difflib.get_close_matches(upper, [one for one in _CANDIDATES if _may_be(upper, one)], 1, _RATIO_MIN)
    return near[0] if near else None


def _may_be(name: str, meant: str) -> bool:
    """Whether a name may be a misspelled one: not if it only ends with another word, as DATABASE_USER."""
    if abs(len(name) - len(meant)) > _LETTERS_MAX:
        return False
    last = name.rpartition("_")[2]
    return last not in _LAST_WORDS or last == meant.rpartition("_")[2]


def _sets(value: str) -> bool:
    """Whether a value is one that a person may have set: not empty, nor a service's address by Kubernetes."""
    return bool(value.strip()) and not value.startswith("tcp://")


def misspelled_in(environ: Mapping[str, str]) -> str | None:
    """One line that names the variables which are probably misspelled settings; None if there are none.

    A variable that is empty sets nothing. Values are not shown: they may be passwords.
    """
    pairs = ((name, meant_by(name)) for name, value in sorted(environ.items()) if _sets(value))
    found = [f"{name} (perhaps {meant})" for name, meant in pairs if meant is not None]
    return f"ignored, since no setting has such a name (docs/settings.md): {', '.join(found)}" if found else None
