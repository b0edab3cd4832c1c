"""One watched connection to PostgreSQL: opened on first use, dropped after a failure, never shared with a fork."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, make_dsn, parse_dsn

from pipeline import __version__
from pipeline.errors import (
    PermanentError,
    SinkContentionError,
    SinkMisconfiguredError,
    SinkUnavailableError,
    in_full,
)
from pipeline.secrets import PORT_MAX
from pipeline.settings import Settings
from pipeline.sink.queries import query
from pipeline.sink.rights import needed_rights
from pipeline.sink.server_check import (
    LENT_BACKENDS,
    DatabaseFacts,
    facts_of,
    refuse,
    server_problem,
    table_problem,
)
from pipeline.sink.sqlstate import (
    LOCK_NOT_AVAILABLE,
    Fault,
    fault_of,
    is_refusal,
    is_schema_missing,
    may_be_a_rows,
    refuses_connections,
)
from pipeline.sink.watchdog import Watchdog

# Options for libpq in addition to the URL. Keepalives detect a peer that vanished while the connection is idle; the
# watchdog covers calls.
_CONNECTION_OPTIONS: Final[dict[str, Any]] = {
    "application_name": f"sluice {__version__}",  # without a version: of one that does not know tables by day
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "client_encoding": "UTF8",
}

# Shares of the silence after which the watchdog shuts the socket down. PostgreSQL itself ends a wait for a lock before
# that, with an error. While it works, it checks whether the client still exists.
_LOCK_SHARE: Final = 0.75
_CHECK_SHARE: Final = 0.5
# Linux has an event for it; elsewhere it is one that poll() always reports.
_CLOSED_BY_PEER: Final = getattr(select, "POLLRDHUP", 0)
# Sessions opened to find out whether a pooler lends backends; one nearly always suffices.
_POOL_TRIES: Final = 3

Row = tuple[Any, ...]


class StatementRefusedError(PermanentError):
    """PostgreSQL refused a statement because of its data; the transaction is aborted, the connection works."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class LockedError(SinkUnavailableError):
    """PostgreSQL ended a statement that waited too long for a lock."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, is_a_row_possible=False)


class _Feed:
    """The file object from which psycopg2 reads a COPY. Every chunk that PostgreSQL takes shows progress."""

    def __init__(self, chunks: Iterator[bytes], watchdog: Watchdog, on_encoded: Callable[[], None] | None) -> None:
        self._chunks = chunks
        self._watchdog = watchdog
        self._on_encoded = on_encoded
        self.error: Exception | None = None

    def read(self, _size: int = -1) -> bytes:
        """The next chunk, of any length; empty at the end."""
        self._watchdog.touch()
        try:
            chunk = next(self._chunks, b"")
            if not chunk and self._on_encoded is not None:
                self._on_encoded()
        except Exception as error:
            self.error = error  # psycopg2 would report it as a cancelled query
            raise
        else:
            return chunk


class Session:
    """A connection with autocommit: statements begin and end transactions.

    Weakness: resolving a host name is the only step without a time limit of Sluice's; use an address if name resolution
    can hang. Not for use by several threads at once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._ends = select.poll()  # whether the server has closed the connection
        self._watchdog: Watchdog | None = None
        self._pid = os.getpid()
        self._generation = 0

    @property
    def generation(self) -> int:
        """Changes when a connection ends; its locks and temporary tables end with it."""
        self._forget_if_forked()
        return self._generation

    # --- statements -------------------------------------------------------------------------

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Run statements and return the last one's rows. Raises SinkUnavailableError, SinkContentionError."""
        with self._guarded() as cursor:
            cursor.execute(sql, parameters)
            found: list[Row] = cursor.fetchall()
            return found

    def count(self, sql: str, parameters: Mapping[str, Any] | None = None, *, refusable: bool = False) -> int:
        """Run statements and return the number of rows that the last one changed.

        Raises SinkUnavailableError (then the connection is dropped) and SinkContentionError (rolled back). Raises
        StatementRefusedError if the statement is `refusable`, because it contains data of events.
        """
        with self._guarded(refusable=refusable) as cursor:
            cursor.execute(sql, parameters)
            changed: int = cursor.rowcount
            return changed

    def copy(self, sql: str, chunks: Iterator[bytes], *, on_encoded: Callable[[], None] | None = None) -> int:
        """Run a COPY FROM STDIN and return its row count. Raises the errors of a refusable `count`.

        `on_encoded` runs when all chunks are encoded and sent, while PostgreSQL is still working.

        The next chunk is made while PostgreSQL works on the last one: the two overlap without a thread.
        """
        with self._guarded(refusable=True) as cursor:
            assert self._watchdog is not None  # noqa: S101 - _guarded has just connected
            feed = _Feed(chunks, self._watchdog, on_encoded)
            try:
                cursor.copy_expert(sql, feed)
            except psycopg2.Error:
                if feed.error is not None:
                    raise feed.error from None
                raise
            changed: int = cursor.rowcount
            return changed

    def commit(self) -> None:
        """End the transaction begun by a statement. After a SinkUnavailableError it may have been committed."""
        with self._guarded() as cursor:
            del self._connection.notices[:]
            cursor.execute("COMMIT")
            if cursor.statusmessage != "COMMIT":  # for an aborted one, PostgreSQL reports success with ROLLBACK
                raise SinkUnavailableError(f"COMMIT was answered with {cursor.statusmessage}")
        if self._connection.notices:  # a trigger's, or that a standby may lack it
            self.await_standbys()

    def await_standbys(self) -> None:
        """Wait until the synchronous standby, if there is one, has all that is committed. Raises SinkUnavailableError.

        If somebody cancels a wait for it (`pg_cancel_backend`), PostgreSQL reports success, and a warning. Its text
        depends on the server's language, and no trigger runs here: so every warning counts.
        """
        with self._guarded() as cursor:
            notices = self._connection.notices
            del notices[:]
            cursor.execute(query("await_standbys"))
            warning = " ".join(notices).strip()
        if warning:
            self.drop()  # with its locks: whoever acquires one waits for the standby again
            raise SinkUnavailableError(
                f"a synchronous standby may lack what was committed: {warning}", is_a_row_possible=False
            )

    def rollback(self) -> None:
        """Roll back an open transaction; raises nothing, because dropping the connection also rolls it back."""
        connection = self._connection
        if connection is None or connection.closed:
            self.drop()
            return
        if connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
            with contextlib.suppress(SinkUnavailableError, SinkContentionError):
                self.count("ROLLBACK")

    def drop(self) -> None:
        """Drop the connection; the next statement opens another one."""
        connection, self._connection = self._connection, None
        self._generation += 1
        if self._socket is not None:
            # Shut down first: a regular close would write to a server that may be frozen.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if connection is not None:
            with contextlib.suppress(psycopg2.Error):
                connection.close()

    def close(self) -> None:
        """Close the connection in the regular way; idempotent."""
        self._forget_if_forked()
        if self._connection is not None and not self._connection.closed and self._socket is not None:
            with contextlib.suppress(psycopg2.Error):
                self._connection.close()  # one small message that fits any socket's buffer
        self.drop()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    # --- connection ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self, *, refusable: bool = False) -> Iterator[Any]:
        """A cursor under the watchdog; psycopg2's errors become Sluice's."""
        self._forget_if_forked()
        if self._connection is None:
            self._connect()
        else:
            self._refuse_ended()
        assert self._watchdog is not None  # noqa: S101 - _connect has set both
        assert self._socket is not None  # noqa: S101
        try:
            with self._watchdog.guard(self._socket), self._connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            self._translate(error, refusable=refusable)

    def _refuse_ended(self) -> None:
        """Raise SinkUnavailableError if the server has ended the session before a statement: no row is the cause.

        It does so after idle_session_timeout and idle_in_transaction_session_timeout, for example. libpq would only say
        that the connection is lost, as if the statement had crashed the server.
        """
        if not self._ends.poll(0):
            return
        with contextlib.suppress(psycopg2.Error):
            self._connection.poll()  # reads what the server said last, as a notice
        said = in_full(" ".join(self._connection.notices[-1:])) or "the connection is closed"
        self.drop()
        raise SinkUnavailableError(f"PostgreSQL has ended the session: {said}", is_a_row_possible=False)

    def _translate(self, error: psycopg2.Error, *, refusable: bool) -> NoReturn:
        message = _said(error)
        fault = fault_of(error.pgcode, error.diag.source_function)
        if fault in (Fault.DATA, Fault.REPEAT, Fault.NOT_BY_COPY) and not refusable:
            fault = Fault.SERVER  # it contained no event's data, so no event is at fault
        if self._connection.closed or fault is Fault.SERVER:
            silent = self._watchdog is not None and self._watchdog.bit
            self.drop()
            if silent:
                message = f"PostgreSQL was silent for {self._settings.sink_call_seconds_max} s"
            if error.pgcode == LOCK_NOT_AVAILABLE:
                raise LockedError(f"timed out waiting for a lock: {message}") from error
            failed = SinkMisconfiguredError if is_refusal(error.pgcode) else SinkUnavailableError
            raise failed(
                message, is_a_row_possible=may_be_a_rows(error.pgcode), sqlstate=error.pgcode or None
            ) from error
        if fault is Fault.CONTENTION:
            self.rollback()
            raise SinkContentionError(message, sqlstate=error.pgcode) from error
        raise StatementRefusedError(str(error.pgcode), message) from error

    def _connect(self) -> None:
        connection = self._connection = connect(self._settings)
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._ends = select.poll()
        self._ends.register(self._socket, _CLOSED_BY_PEER)
        if self._watchdog is None:
            self._watchdog = Watchdog(self._settings.sink_call_seconds_max)
        self.check()
        silence_ms = 1000 * self._settings.sink_call_seconds_max
        milliseconds = {"lock_ms": int(silence_ms * _LOCK_SHARE), "check_ms": int(silence_ms * _CHECK_SHARE)}
        self.count(query("set_up_session"), milliseconds)

    def check(self) -> DatabaseFacts:
        """The server's facts about itself. Raises SinkMisconfiguredError if it can't keep Sluice's guarantees."""
        try:
            facts = DatabaseFacts(*self.rows(query("server_facts"))[0])
            refuse(server_problem(facts))
            if facts.backend_pid != self._connection.info.backend_pid and self._backends_are_lent(facts.backend_pid):
                refuse(LENT_BACKENDS)
            needed = needed_rights(makes_marks=bool(self._settings.log_keep_hours))
            table = facts_of(self.rows(query("table_facts"), needed))
            refuse(None if table is None else table_problem(table))
        except SinkUnavailableError:
            self.drop()
            raise
        return facts

    def _backends_are_lent(self, backend_pid: int) -> bool:
        """Whether another session gets this session's backend, or this session another one. Called behind a pooler.

        A pooler without a second backend does not lend one for single transactions either.
        """
        assert self._watchdog is not None  # noqa: S101 - called while connecting
        for _ in range(_POOL_TRIES):
            with contextlib.closing(connect(self._settings)) as other, other.cursor() as cursor:
                duplicate = socket.socket(fileno=os.dup(other.fileno()))
                try:
                    for question in ("backend_pid", "begin_and_ask_backend_pid"):
                        with self._watchdog.guard(duplicate):
                            cursor.execute(query(question))
                        if cursor.fetchone()[0] == backend_pid:
                            return True
                except psycopg2.Error:
                    return False
                finally:
                    duplicate.close()
                if self.rows(query("backend_pid"))[0][0] != backend_pid:
                    return True
        return False

    def _forget_if_forked(self) -> None:
        """Drop the state after a fork: a child must not use its parent's connection, not even to close it."""
        pid = os.getpid()
        if pid == self._pid:
            return
        self._pid = pid
        self._generation += 1
        self._connection = None  # psycopg2 closes a connection only in the process that opened it
        if self._socket is not None:
            self._socket.close()  # only this process' duplicate of the descriptor
            self._socket = None
        self._watchdog = None  # its thread does not exist in the child


def connect(settings: Settings) -> Any:
    """A new psycopg2 connection with autocommit, not watched.

    Raises SinkUnavailableError, and SinkMisconfiguredError if the server answers and refuses the session for good.
    If DATABASE_URL names several hosts, libpq tries them in turn, each for `sink_connect_seconds_max`.
    """
    try:
        connection = psycopg2.connect(
            _with_one_address(settings.database_url, settings.sink_connect_seconds_max),
            connect_timeout=settings.sink_connect_seconds_max,
            **_CONNECTION_OPTIONS,
        )
    except (psycopg2.Error, OSError, ValueError) as error:  # of a host that is an option and can't be one
        failed = SinkMisconfiguredError if refuses_connections(str(error)) else SinkUnavailableError
        name = "MIGRATE_DATABASE_URL" if settings.database_url == settings.migrate_database_url else "DATABASE_URL"
        raise failed(f"no connection to PostgreSQL at {name}: {_said(error)}", is_a_row_possible=False) from error
    connection.autocommit = True
    return connection


def _said(error: BaseException) -> str:
    """An error in words, and the command that helps if the database lacks the schema."""
    if isinstance(error, psycopg2.Error) and is_schema_missing(error.pgcode, error.diag.context):
        return (
            f"{error.diag.message_primary}: the database has no schema of Sluice, or one of an older version: run "
            "`python -m pipeline migrate`"
        )
    return in_full(error) or type(error).__name__


def _with_one_address(url: str, seconds_max: float) -> str:
    """The connection string with one address in place of a host name that has several.

    libpq applies its `connect_timeout` to each address in turn. So a frozen server on `localhost` (::1 and 127.0.0.1)
    would take twice the time. This uses the first address that accepts, within `seconds_max` for all. Raises OSError if
    none does.
    """
    words = parse_dsn(url)
    host = words.get("host", "")
    if not host or host.startswith(("/", "@")) or "," in host or "hostaddr" in words:
        return url
    text = words.get("port", "5432")
    if not text.isdecimal() or int(text) > PORT_MAX:
        return url  # libpq says what is wrong
    port = int(text)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(f"{host}: {error.strerror}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if len(addresses) == 1:
        return str(make_dsn(url, hostaddr=addresses[0]))
    deadline = time.monotonic() + seconds_max
    last_error: OSError = TimeoutError(f"none of the addresses of {host} answered within {seconds_max} s")
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        share_seconds = (deadline - time.monotonic()) / left
        try:
            socket.create_connection((address, port), max(share_seconds, 0.01)).close()
        except OSError as error:
            last_error = error
            continue
        return str(make_dsn(url, hostaddr=address))
    raise last_error
