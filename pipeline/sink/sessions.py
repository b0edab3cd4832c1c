"""How many sessions of PostgreSQL a system uses, and whether server, user and database allow them.

A system that may open fewer works until all of its processes are busy; then connecting fails, and the breaker opens.
Sessions of other programs are not counted: they come and go (the alert DatabaseConnectionsHigh is about them). Nor are
those that a pooler allows: it has no common way to be asked.
"""

import contextlib
import logging
from dataclasses import dataclass
from typing import Final

from pipeline.settings import Settings
from pipeline.sink.queries import query
from pipeline.sink.server_check import refuse
from pipeline.sink.session import Session

_logger = logging.getLogger(__name__)

_SPARE_DRAINS: Final = 2  # processes more than drains: a frozen one must not block the others
CONTROL_PROCESSES: Final = 2
# Sessions that last for a moment: two of a migration, one of an operator's command or of `doctor`.
_MOMENTS: Final = 3


@dataclass(frozen=True, slots=True)
class SessionsNeeded:
    """Sessions of a whole system. Its processes hold theirs for as long as they live."""

    by_settings: int  # processes for batches, from LOG_PARTITIONS and DRAINS_MAX
    own: int  # processes for batches of the worker that asks; 0 if none does

    @property
    def processes(self) -> int:
        """Processes for batches: what decides is the larger of both."""
        return max(self.by_settings, self.own)

    @property
    def held(self) -> int:
        """What all processes hold."""
        return self.processes + CONTROL_PROCESSES

    @property
    def all(self) -> int:
        """All of them at once, with those of a moment."""
        return self.held + _MOMENTS

    def fewer(self, allowed: int) -> str:
        """What to set, so that no more than so many are needed; empty if nothing is enough."""
        most, found = allowed - CONTROL_PROCESSES - _MOMENTS, []  # processes for batches
        if most <= _SPARE_DRAINS:
            return ""
        if self.by_settings > most:
            found.append(f"set DRAINS_MAX={most - _SPARE_DRAINS}")
        if self.own > most:
            found.append(f"have at most {most} processes in this worker (--concurrency)")
        return ", and ".join(found)

    def __str__(self) -> str:
        """How many processes there are, and what that number is from."""
        source = "--concurrency of this worker" if self.own > self.by_settings else "LOG_PARTITIONS and DRAINS_MAX"
        batches = f"{self.processes} processes for batches, from {source}, and " if self.processes else ""
        return f"{batches}{CONTROL_PROCESSES} for control"


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a server says of its limits: the columns of the statement `session_limits`, in their order. -1: no limit."""

    backend_pid: int
    max_connections: int
    superuser_reserved: int
    reserved: int  # for members of pg_use_reserved_connections, from PostgreSQL 16 on
    is_superuser: bool
    may_use_reserved: bool
    role_limit: int
    database_limit: int
    user: str
    database: str

    @property
    def kept_for_others(self) -> int:
        """Sessions that the server keeps for superusers, and for members of a role."""
        if self.is_superuser:
            return 0
        return self.superuser_reserved + (0 if self.may_use_reserved else self.reserved)

    @property
    def allowed(self) -> int:
        """Sessions that Sluice's user may have at once, if nobody else has one."""
        limits = [self.max_connections - self.kept_for_others]
        if not self.is_superuser:
            limits += [limit for limit in (self.role_limit, self.database_limit) if limit >= 0]
        return min(limits)

    def remedy(self, wanted: int) -> str:
        """What to set, so that so many are allowed: each limit that is smaller."""
        found = []
        if self.max_connections - self.kept_for_others < wanted:
            found.append(f"max_connections={wanted + self.kept_for_others} in PostgreSQL, and restart it")
        if 0 <= self.role_limit < wanted and not self.is_superuser:
            found.append(f"ALTER ROLE {self.user} CONNECTION LIMIT {wanted}")
        if 0 <= self.database_limit < wanted and not self.is_superuser:
            found.append(f"ALTER DATABASE {self.database} CONNECTION LIMIT {wanted}")
        return ", and ".join(found)

    def __str__(self) -> str:
        """All limits in words."""
        words = [f"max_connections {self.max_connections}"]
        if self.kept_for_others:
            words[0] += f" less {self.kept_for_others} reserved"
        if not self.is_superuser:
            words += [f"{self.role_limit} of the user {self.user}"] if self.role_limit >= 0 else []
            words += [f"{self.database_limit} of the database {self.database}"] if self.database_limit >= 0 else []
        return ", ".join(words)


def batch_processes(settings: Settings) -> int:
    """Worker processes for batches that a system needs, on all hosts together."""
    return min(settings.log_partitions, settings.drains_max) + _SPARE_DRAINS


def sessions_needed(settings: Settings, *, own_processes: int = 0) -> SessionsNeeded:
    """What a system with these settings uses. Each worker process has one session, for batches and for control.

    A worker knows its own processes for batches; those of workers on other hosts are taken from the settings. With
    events in files, drains have no session.
    """
    return SessionsNeeded(0, 0) if settings.event_sink_url else SessionsNeeded(batch_processes(settings), own_processes)


def limits_problem(limits: SessionLimits, needed: SessionsNeeded) -> str | None:
    """The reason why a system can't run with these limits; None if it can."""
    return _problem(limits, needed) if limits.allowed < needed.held else None


def limits_warning(limits: SessionLimits, needed: SessionsNeeded) -> str | None:
    """The reason why it can run, but a migration or an operator may find no session; None if there is none."""
    return _problem(limits, needed) if needed.held <= limits.allowed < needed.all else None


def _problem(limits: SessionLimits, needed: SessionsNeeded) -> str:
    remedies = [f"set {limits.remedy(needed.all)}", needed.fewer(limits.allowed)]
    return (
        f"it allows at most {max(0, limits.allowed)} sessions ({limits}), and {needed.held} are needed ({needed}), and "
        f"{_MOMENTS} more for migrations and operators: {'; or '.join(filter(None, remedies))}"
    )


def read_limits(settings: Settings) -> SessionLimits:
    """Ask the server of DATABASE_URL. Raises SinkUnavailableError, also if it can't be used for another reason."""
    with contextlib.closing(Session(settings)) as session:
        return SessionLimits(*session.rows(query("session_limits"))[0])


def session_problem(settings: Settings, *, own_processes: int = 0, warns: bool = True) -> str | None:
    """Why the server allows too few sessions; None if it allows enough.

    With `warns`, logs a line if it allows just enough. Raises SinkUnavailableError if it can't be asked.
    """
    limits, needed = read_limits(settings), sessions_needed(settings, own_processes=own_processes)
    if warns and (warning := limits_warning(limits, needed)):
        _logger.warning("PostgreSQL: %s (docs/database.md)", warning, extra={"action": "few_sessions"})
    return limits_problem(limits, needed)


def check_sessions(settings: Settings) -> None:
    """Raise SinkMisconfiguredError if the server allows fewer sessions than a system with these settings uses.

    Raises SinkUnavailableError if it can't be asked.
    """
    refuse(session_problem(settings))
