"""The tests' own process waits longer for a server than a shipped process does.

A call of the control store may take 0.2 s and a connection to the log too, far above what they need. On a machine with
more tests than processors a server may get no processor for that long, and a test that looks at it would fail. In
programs that a test starts, these limits are as they are shipped. (Settings are another matter: `conftest.settings` has
longer times than the defaults.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

import pytest

from checks.testbed.waiting import BUSY_SECONDS
from pipeline.control_store import connection
from pipeline.log import kafka, redis_aof, redis_connection, redis_reader, redis_streams

_LIMITS: Final[tuple[tuple[ModuleType, str], ...]] = (
    (connection, "CALL_SECONDS_MAX"),
    (connection, "WAIT_GRACE_SECONDS"),
    (redis_connection, "CONNECT_SECONDS_MAX"),
    (redis_streams, "CALL_SECONDS_MAX"),
    (redis_reader, "WAIT_GRACE_SECONDS"),
    (redis_aof, "REWRITE_WAIT_SECONDS"),
    (kafka, "CALL_SECONDS_MAX"),
)
_SHIPPED: Final = tuple(getattr(module, name) for module, name in _LIMITS)


def be_patient() -> None:
    """Give servers `BUSY_SECONDS` for an answer, in this process."""
    for module, name in _LIMITS:
        setattr(module, name, BUSY_SECONDS)


@contextmanager
def _shipped() -> Iterator[None]:
    for (module, name), seconds in zip(_LIMITS, _SHIPPED, strict=True):
        setattr(module, name, seconds)
    try:
        yield
    finally:
        be_patient()


@pytest.fixture
def shipped_limits() -> Iterator[None]:
    """For a test of these limits, in which a server is silent."""
    with _shipped():
        yield
