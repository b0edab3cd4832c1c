"""Every error that Sluice raises: one root; the classes below it show what the caller can do.

A class' docstring is its default message. Only `ingest/errors.py` turns these into HTTP statuses.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pipeline.secrets import hide_secrets
from pipeline.text import on_its_lines, on_one_line

_THE_LOG: Final = "the event log"
# The question that libpq adds to its error, once for each address that it tried.
_LIBPQ_QUESTION: Final = re.compile(r" *\bIs the server running [^?]*\?")
_BRIEF_CHARS_MAX: Final = 240


class SluiceError(Exception):
    """Sluice failed."""

    def __init__(self, message: str | None = None) -> None:
        said = message or inspect.getdoc(type(self)) or type(self).__name__
        super().__init__(on_its_lines(hide_secrets(said)))  # it may quote a client, and be shown in a terminal


def in_full(said: object) -> str:
    """An error for operators: on one line, what happened and where, without libpq's question."""
    return on_one_line(_LIBPQ_QUESTION.sub("", " ".join(hide_secrets(str(said)).split())).strip())


def in_brief(said: object) -> str:
    """The same in short form."""
    text = in_full(said)
    return text if len(text) <= _BRIEF_CHARS_MAX else f"{text[: _BRIEF_CHARS_MAX - 1]}…"


def about_the_log(said: object, what: str = _THE_LOG) -> str:
    """An error about the event log, after `what` and a colon, unless it names the event log itself."""
    text = str(said)
    return text if text.startswith(_THE_LOG) else f"{what}: {text}"


# --- Recoverable: the same call may succeed later -------------------------------------------


class RecoverableError(SluiceError):
    """A part of the system is unavailable; the same call may succeed later."""


class LogUnavailableError(RecoverableError):
    """The event log does not answer; nothing was written to it."""


class LogIndeterminateError(RecoverableError):
    """The event log did not confirm an append in time: any subset of it may be stored."""


class LogPartialError(LogIndeterminateError):
    """The event log did not store the events of some of its partitions.

    `failures` has the error of each failed partition. If an append raised this, the events of all others are durable.
    """

    def __init__(self, failures: Mapping[int, SluiceError] | None = None) -> None:
        self.failures = dict(failures or {})
        numbers = ", ".join(map(str, sorted(self.failures)))
        reasons = "; ".join(dict.fromkeys(str(self.failures[number]) for number in sorted(self.failures)))
        super().__init__(f"partitions that stored no event, or perhaps none: {numbers} ({reasons})")

    def of(self, partitions: Iterable[int]) -> SluiceError | None:
        """The error for the part of the append that went to these partitions; None: that part is durable.

        It is a LogPartialError if some of these partitions are known to have stored everything, or nothing.
        """
        asked = set(partitions)
        errors = [self.failures[number] for number in sorted(asked & self.failures.keys())]
        if not errors:
            return None
        unsure = sum(isinstance(error, LogIndeterminateError) for error in errors)
        if unsure == len(asked):
            return LogIndeterminateError(f"a part of it may be stored: {errors[0]}")
        if unsure or len(errors) < len(asked):
            return LogPartialError({number: self.failures[number] for number in asked & self.failures.keys()})
        return errors[0]


class LogRestartedError(RecoverableError):
    """The event log was restarted since it was last read: positions must be looked up again."""


class SinkUnavailableError(RecoverableError):
    """The sink does not answer or refuses to work. Counts for the circuit breaker."""

    def __init__(
        self, message: str | None = None, *, is_a_row_possible: bool = True, sqlstate: str | None = None
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate  # None: the error did not come from the server
        # False: no content of a row can be the cause (a lock, a full disk), even if the same batch fails many times.
        self.is_a_row_possible = is_a_row_possible


class SinkMisconfiguredError(SinkUnavailableError):
    """The sink answers, and can't be used until an operator changes something."""


class SinkStandbyError(SinkMisconfiguredError):
    """PostgreSQL is a standby, which takes no writes: for a moment during a failover, or by DATABASE_URL."""


class SinkContentionError(RecoverableError):
    """PostgreSQL rolled the transaction back in favour of another (SQLSTATE class 40): repeat it. Not counted."""

    def __init__(self, message: str | None = None, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate  # None: not from the server, and no row can be the cause


class BatchRefusedError(RecoverableError):
    """PostgreSQL refused a row of a batch, and the batch is too large to find the row in one transaction."""


class OffsetConflictError(RecoverableError):
    """Another drain has moved this partition's stored offset: this batch was rolled back."""


class FencedError(RecoverableError):
    """The event log was restarted since this batch was read, or that is unknown: the batch is read again."""


class BreakerOpenError(RecoverableError):
    """The circuit breaker is open: the sink is not used until the prober's write succeeds."""


class StoreUnavailableError(RecoverableError):
    """The control store (Redis) does not answer."""


class StoreRefusesError(StoreUnavailableError):
    """The control store (Redis) answers, and refuses what it is asked for: another question may be answered."""


# --- Overloaded: the same call may succeed after a pause ---------------------------------------


class OverloadedError(SluiceError):
    """A part of the system is overloaded."""

    def __init__(self, message: str | None = None, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class LogFullError(OverloadedError):
    """The event log is full or accepts no events; no event was written to it."""


class AppendBufferFullError(OverloadedError):
    """More events wait for the event log than the append buffer may hold; nothing was written."""


# --- Permanent: repeating the call will not help -----------------------------------------------


class PermanentError(SluiceError):
    """Repeating this does not help; an operator or the client must change something."""


class SettingsError(PermanentError):
    """A setting is missing or invalid."""


class LogGapError(PermanentError):
    """The event log no longer has the next records to store, or its end lies below the stored offset."""


class LogMisconfiguredError(PermanentError):
    """The event log server is set up so that it would lose acknowledged events."""


class SchemaError(PermanentError):
    """The database's schema does not belong to this version of Sluice."""


class SchemaNewerError(SchemaError):
    """A newer version of Sluice has updated the database's schema. This version can use it."""


class PoisonedError(PermanentError):
    """The sink refused too many events in a row for their content: the schema, not the data, is suspect.

    `evidence` is the batch for people to look at, as JSON can have it: see `pipeline.sink.poison`.
    """

    def __init__(self, message: str | None = None, *, evidence: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.evidence = evidence
