"""A handler for the standard library's `logging`."""

import logging
from typing import Final, Unpack

from sluice_client.client import Client
from sluice_client.context import bound_as
from sluice_client.events import add_extra, last_part, severity_numbered
from sluice_client.exceptions import STACKTRACE_BYTES_MAX, exception_attributes
from sluice_client.options import OptionFields

STACK_INFO_BYTES_MAX: Final = 1024
CORRELATION_KEYS: Final = ("correlation_id", "correlationId")  # attributes of a record that become its correlation id

# The attributes of every record; all others come from `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class SluiceHandler(logging.Handler):
    """Sends log records to a Sluice in the background.

    Give it a client, or the arguments of one: it then closes that client with itself. `extra` becomes attributes; an
    extra `correlation_id` is the event's. A formatter is not used: the text that it adds is in fields of its own, and
    `basicConfig` sets one without being asked.
    """

    def __init__(
        self,
        url: str = "",
        *,
        source: str = "",
        client: Client | None = None,
        level: int | str = logging.NOTSET,
        **options: Unpack[OptionFields],
    ) -> None:
        """Raises ValueError if there is neither a client nor an address and a source."""
        super().__init__(level)
        if client is None and not (url and source):
            raise ValueError("SluiceHandler needs url and source, or a client")
        self._is_own = client is None
        self._client = client if client is not None else Client(url, source=source, **options)

    @property
    def client(self) -> Client:
        """Where the records go."""
        return self._client

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit a record that passes the filters. Holds no lock: another thread must not wait while this one does."""
        found: object = self.filter(record)  # from Python 3.12 on it may be another record
        if isinstance(found, logging.LogRecord):
            record = found
        if found:
            self.emit(record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record. Never raises, and waits at most `block_seconds`."""
        try:
            given = vars(record)
            with bound_as(record.exc_info[1] if record.exc_info else None):
                self._client.emit(
                    record.getMessage(),
                    severity=severity_numbered(record.levelno),
                    correlation_id=next((str(given[key]) for key in CORRELATION_KEYS if given.get(key)), None),
                    attributes=attributes_of(record),
                    timestamp_ms=int(record.created * 1000),
                )
        except Exception:  # foreign code: arguments of the message
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all is sent, as long as the end of the program may take."""
        self._client.flush(self._client.core.close_seconds)

    def close(self) -> None:
        """Close the client, if it is the handler's own."""
        if self._is_own:
            self._client.close()
        super().close()


def attributes_of(record: logging.LogRecord) -> dict[str, object]:
    """What a record has beside its message; the order is that in which attributes find room."""
    found: dict[str, object] = {
        "logger": record.name,
        "file": record.filename,
        "line": record.lineno,
        "function": record.funcName,
    }
    if record.exc_info and record.exc_info[1] is not None:
        found |= exception_attributes(record.exc_info[1])
    elif record.exc_text:
        found["exception.stacktrace"] = last_part(record.exc_text, STACKTRACE_BYTES_MAX)
    if record.stack_info:
        found["stack_info"] = last_part(record.stack_info, STACK_INFO_BYTES_MAX)
    given = vars(record).items()
    add_extra(found, ((key, value) for key, value in given if key not in _STANDARD and key not in CORRELATION_KEYS))
    return found
