"""A Sluice for the clients alone, and the actions on it while they send."""

import contextlib
import json
import os
import re
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg2

from pipeline import wiring
from pipeline.errors import StoreUnavailableError
from pipeline.settings import Settings
from stack.config import StackConfig, environ_of_its_own
from stack.system import System

RATE_MAX: Final = 100_000.0  # events/s: far above every client's rate
_INGEST: Final = "ingest-0"
_ACTOR: Final = "checks.clients"
_OVERRIDE_SECONDS: Final = 600.0  # longer than any run
_WAIT_SECONDS_MAX: Final = 60.0
_REQUESTS: Final = re.compile(r'^sluice_ingest_protocol_requests_total\{protocol="(\w+)",status="(\d+)"\} (\S+)', re.M)
_RATE: Final = re.compile(r"^sluice_ingest_rate (\S+)", re.M)
# A message has the name of its run and its number; a protocol may put text around them.
_NUMBERS: Final = """
    SELECT number::integer, count(*)
    FROM (
        SELECT substring(message FROM %(run)s || '-([0-9]{6})') AS number
        FROM log_events
        WHERE strpos(message, %(run)s) > 0
    ) AS found
    GROUP BY number
"""


class NotReadyError(Exception):
    """Something did not happen in time; the message says what."""


def message(run: str, number: int) -> str:
    """The text of one message of a run, as all clients log it."""
    return f"{run}-{number:06d} order"


def wait_for(condition: Callable[[], bool], what: str, *, seconds_max: float = _WAIT_SECONDS_MAX) -> None:
    """Wait until a condition holds; no answer counts as no. Raises NotReadyError."""
    deadline = time.monotonic() + seconds_max
    while True:
        with contextlib.suppress(OSError, StoreUnavailableError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise NotReadyError(f"not within {seconds_max:.0f} s: {what}")
        time.sleep(0.1)


class Sluice:
    """A running system with one ingest process."""

    def __init__(self, system: System, settings: Settings) -> None:
        self._system = system
        self._control = wiring.make_control_store(settings)
        self._database_url = settings.database_url
        self.port = settings.ingest_port
        self._url = f"http://127.0.0.1:{self.port}"

    def rows(self, run: str) -> dict[int, int]:
        """The number of rows in PostgreSQL for each message of a run."""
        return dict(self._query(_NUMBERS, {"run": run}))

    def dead_letters(self) -> int:
        """The number of events that were accepted but could not be stored."""
        return int(self._query("SELECT count(*) FROM dead_letters", {})[0][0])

    def refused(self, protocol: str) -> int:
        """The number of requests of a protocol that ingest has refused since its start."""
        found = _REQUESTS.findall(self._get("/metrics"))
        return sum(int(float(count)) for name, status, count in found if name == protocol and status in ("429", "503"))

    @contextlib.contextmanager
    def limited(self, rate: float) -> Iterator[None]:
        """Admit at most `rate` events per second until the block ends, by an operator's override."""
        control = self._control

        def begin() -> bool:
            until = control.state().time + _OVERRIDE_SECONDS
            control.set_override(rate, until=until, actor=_ACTOR, why="clients must get 429")
            return True

        def end() -> bool:
            control.clear_override(actor=_ACTOR, why="enough of them")
            return True

        try:
            wait_for(begin, "the control store takes an override")
            wait_for(lambda: self._rate() == rate, "ingest knows the override")
            yield
        finally:
            wait_for(end, "the control store takes the end of the override")
        wait_for(lambda: self._rate() > rate, "ingest knows the end of the override")

    def restart_ingest(self) -> None:
        """Stop ingest as its supervisor does, and start it again. Raises NotReadyError."""
        self._system.supervisor().stopProcess(_INGEST, True)
        self._system.supervisor().startProcess(_INGEST, False)
        wait_for(lambda: bool(self._get("/readyz")), "ingest is ready again")

    def wait_until_stored(self) -> None:
        """Wait until every event that was accepted so far is stored. Raises NotReadyError."""
        began = time.monotonic()

        def is_stored() -> bool:
            health = json.loads(self._get("/api/logs/health"))
            age = health["controllerAgeSeconds"]
            return health["consumerLag"] == 0 and age is not None and age < time.monotonic() - began

        wait_for(is_stored, "all accepted events are stored")

    def _rate(self) -> float:
        found = _RATE.search(self._get("/metrics"))
        return float(found[1]) if found else 0.0

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self._url + path, timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def _query(self, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        with (
            contextlib.closing(psycopg2.connect(self._database_url, connect_timeout=5)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql, values)
            return cursor.fetchall()


@contextlib.contextmanager
def running_sluice(folder: Path) -> Iterator[Sluice]:
    """A system in a folder, on servers of its own, until the block ends. Raises ServerError."""
    settings = {"RATE_MAX": str(RATE_MAX), "REGULATE_SECONDS": "1"}
    with environ_of_its_own(SLUICE_HOME=str(folder), PROMETHEUS="no", INGEST_PROCESSES="1", **settings):
        system = System(StackConfig.from_environ("redis"))
        urls = system.start(threading.Event())
        try:
            yield Sluice(system, Settings.from_environ({**os.environ, **urls}))
        finally:
            system.stop()


def new_folder() -> Path:
    """A temporary folder that PostgreSQL can enter as another user."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-clients-"))
    folder.chmod(0o755)
    return folder
