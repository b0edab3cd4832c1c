"""Writes the events of one batch, within a transaction that the caller begins and ends.

`write_straight` is a COPY into the table, and fails as a whole. `write_carefully` uses a staging table, counts repeats,
and tries rows one by one if PostgreSQL refuses them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.names import LETTER_CONFLICT
from pipeline.ports.log import LogBatch
from pipeline.sink.poison import RejectedRecord
from pipeline.sink.queries import query
from pipeline.sink.rows import EncodedRows, RowEncoder, copy_chunks, place_columns, printable
from pipeline.sink.session import Session, StatementRefusedError
from pipeline.sink.sqlstate import CONTENTION_CLASS, INSUFFICIENT_PRIVILEGE, SERVER_CLASSES, UNIQUE_VIOLATION

_logger = logging.getLogger(__name__)

# Otherwise a batch of only conflicts would write one line for each into the journal.
_CONFLICTS_LOGGED_MAX: Final = 20
# Rows that are already encoded are sent in larger pieces than rows that are being encoded: each piece costs the sending
# thread a turn on the interpreter, and it may have to wait for that.
_ENCODED_CHUNK_BYTES: Final = 512 * 1024
# By day, a batch whose ids another session stores meanwhile is tried as a whole again, so often; then row by row.
_CAREFUL_TRIES: Final = 3
# Dead letters sent in one statement; a record may be as large as a request body.
_LETTERS_AT_ONCE: Final = 50


@dataclass(slots=True)
class Written:
    """The outcome of a batch's records. `conflicts` has indexes; the rest are counts or letters.

    A conflict is also kept as a letter, see `kept`. It is not the schema's fault, so `letters` does not contain it, and
    poison does not count it.
    """

    stored: int = 0
    repeated: int = 0
    conflicts: list[int] = field(default_factory=list)
    letters: list[RejectedRecord] = field(default_factory=list)
    received_at_ms: list[int] = field(default_factory=list)

    @property
    def kept(self) -> list[RejectedRecord]:
        """All records that are kept as dead letters."""
        return [*self.letters, *(RejectedRecord(index, LETTER_CONFLICT, UNIQUE_VIOLATION) for index in self.conflicts)]


def write_straight(
    session: Session,
    encoder: RowEncoder,
    log_id: str,
    partition: int,
    batch: LogBatch,
    *,
    encoded: EncodedRows | None,
    on_encoded: Callable[[], None] | None,
) -> Written:
    """COPY into log_events; undecodable records become letters. Raises StatementRefusedError as a whole."""
    if encoded is not None and (encoded.log_id, encoded.partition) == (log_id, partition):
        stored = session.copy(query("copy_events"), _after_call(encoded.chunks, on_encoded))
        return Written(stored=stored, letters=encoded.letters, received_at_ms=encoded.received_at_ms)
    letters: list[RejectedRecord] = []
    received: list[int] = []
    rows = encoder.rows(batch.values, place_columns(log_id, partition), batch.offset, letters, received)
    stored = session.copy(query("copy_events"), copy_chunks(rows), on_encoded=on_encoded)
    return Written(stored=stored, letters=letters, received_at_ms=received)


def _after_call(chunks: Sequence[bytes], function: Callable[[], None] | None) -> Iterator[bytes]:
    if function is not None:
        function()
    yield from chunks


def encode(encoder: RowEncoder, log_id: str, partition: int, batch: LogBatch) -> EncodedRows:
    """The batch's rows, in the bytes of a COPY."""
    letters: list[RejectedRecord] = []
    received: list[int] = []
    rows = encoder.rows(batch.values, place_columns(log_id, partition), batch.offset, letters, received)
    return EncodedRows(log_id, partition, list(copy_chunks(rows, _ENCODED_CHUNK_BYTES)), letters, received)


def make_stage(session: Session) -> None:
    """Create the staging table; outside of a transaction, so that a rollback does not remove it."""
    session.count(query("make_stage"))


def write_carefully(
    session: Session,
    rows: Sequence[bytes | None],
    positions: Callable[[int], tuple[str, int, int]],
    *,
    letters_max: int,
    piece_records_max: int,
) -> Written:
    """Write rows through the staging table, piece by piece. Rows of a refused piece are tried one by one.

    `positions(index)` is a row's (log_id, partition, offset); None among the rows is left out. Pieces are taken in the
    order of the rows, so that the first of two rows with one event_id is stored. They are no larger than
    `piece_records_max`, so that PostgreSQL is not silent for long. A piece that even the staging table refuses is cut
    in half. Stops early, with the result so far, if there are more than `letters_max` letters: the caller then gives
    the batch up. Raises SinkUnavailableError, SinkContentionError.
    """
    written = Written()
    is_by_day = bool(session.rows(query("find_layout"))[0][0])
    pieces = [(first, min(first + piece_records_max, len(rows))) for first in range(0, len(rows), piece_records_max)]
    pieces.reverse()
    while pieces and len(written.letters) <= letters_max:
        first, end = pieces.pop()
        try:
            session.count(query("open_piece"))
            letters_left = letters_max - len(written.letters)
            piece = rows[first:end]
            _write_piece(session, piece, first, positions, written, letters_max=letters_left, is_by_day=is_by_day)
            session.count(query("close_piece"))
        except StatementRefusedError as refusal:
            session.count(query("undo_piece"))
            if end - first == 1:
                written.letters.append(RejectedRecord(first, printable(str(refusal)), refusal.sqlstate))
            else:
                middle = (first + end) // 2
                pieces += [(middle, end), (first, middle)]  # the first half is taken next
    return written


def _write_piece(
    session: Session,
    rows: Sequence[bytes | None],
    first: int,
    positions: Callable[[int], tuple[str, int, int]],
    written: Written,
    *,
    letters_max: int,
    is_by_day: bool,
) -> None:
    """Write one piece; its first row has index `first`. Raises StatementRefusedError if it can't be staged."""
    staged = session.copy(query("copy_stage"), copy_chunks(rows))
    letters: list[RejectedRecord] = []
    try:
        stored = _insert_from_stage(session, is_by_day=is_by_day)
    except StatementRefusedError:
        indexes = {positions(index): index for index, row in enumerate(rows, first) if row is not None}
        letters, repeated = _insert_one_by_one(session, indexes, letters_max, is_by_day=is_by_day)
        staged -= len(letters)
        stored = staged - repeated
    conflicts: list[int] = []
    if stored < staged:
        found = _conflicts_by_day(session) if is_by_day else session.rows(query("conflicts_in_stage"))
        ids = {(log_id, partition, offset): event_id for event_id, log_id, partition, offset in found}
        if ids:
            conflicts = [index for index, row in enumerate(rows, first) if row is not None and positions(index) in ids]
            _log_conflicts([ids[positions(index)] for index in conflicts])
    written.stored += stored
    written.repeated += staged - stored - len(conflicts)
    written.conflicts += conflicts
    written.letters += letters


def _conflicts_by_day(session: Session) -> list[tuple[Any, ...]]:
    """The staged rows whose ids are stored with other content, day by day."""
    found = []
    for begins, ends in session.rows(query("days_of_repeats")):
        found += session.rows(query("conflicts_in_stage_by_day"), {"begins": begins, "ends": ends})
    return found


def _insert_from_stage(session: Session, *, is_by_day: bool) -> int:
    """Insert the staged rows whose ids are not stored; returns how many. Raises the errors of a refusable `count`.

    By day, no statement of PostgreSQL can skip an id that another session is just storing: it waits for that session,
    and fails with 23505 if that one commits. The next try sees the id.
    """
    if not is_by_day:
        return session.count(query("insert_from_stage"), refusable=True)
    for _ in range(_CAREFUL_TRIES - 1):
        try:
            return session.count(query("insert_from_stage_by_day"), refusable=True)
        except StatementRefusedError as refusal:
            if refusal.sqlstate != UNIQUE_VIOLATION:
                raise
            session.count(query("undo_insert_from_stage"))
    return session.count(query("insert_from_stage_by_day"), refusable=True)


def _insert_one_by_one(
    session: Session, indexes: Mapping[tuple[str, int, int], int], letters_max: int, *, is_by_day: bool
) -> tuple[list[RejectedRecord], int]:
    """Insert the staged rows one by one. Returns the refused ones as letters, and the count of existing ids.

    `indexes` maps the positions of the rows to their indexes. Raises SinkUnavailableError, SinkContentionError.
    """
    limits = {
        "server_classes": sorted(SERVER_CLASSES | {CONTENTION_CLASS}),
        "of_a_row": INSUFFICIENT_PRIVILEGE,  # if it concerned the table itself, it was raised before any row was tried
        "letters_max": letters_max,
        "is_by_day": is_by_day,
    }
    session.count(query("insert_one_by_one"), limits)
    letters = [
        RejectedRecord(indexes[log_id, partition, offset], printable(reason), sqlstate)
        for log_id, partition, offset, sqlstate, reason in session.rows(query("take_refused"))
    ]
    return letters, int(session.rows(query("count_repeated"))[0][0])


def _log_conflicts(event_ids: list[str]) -> None:
    _logger.warning(
        "%d events are kept as dead letters: their ids are stored with other content: %s%s",
        len(event_ids),
        ", ".join(event_ids[:_CONFLICTS_LOGGED_MAX]),
        ", …" if len(event_ids) > _CONFLICTS_LOGGED_MAX else "",
        extra={"action": "event_conflict", "event_ids": event_ids[:_CONFLICTS_LOGGED_MAX]},
    )


def write_letters(
    session: Session, log_id: str, partition: int, batch: LogBatch, letters: Sequence[RejectedRecord]
) -> None:
    """Keep the records of `letters` as they are in the log; earlier letters at their offsets are kept as well."""
    for first in range(0, len(letters), _LETTERS_AT_ONCE):
        some = letters[first : first + _LETTERS_AT_ONCE]
        parameters = {
            "log_id": log_id,
            "partition": partition,
            "offsets": [batch.offset + letter.index for letter in some],
            "raws": [batch.values[letter.index] for letter in some],
            "reasons": [letter.reason for letter in some],
            "sqlstates": [letter.sqlstate for letter in some],
        }
        if session.count(query("insert_dead_letters"), parameters) < len(some):
            aside = session.count(query("set_letters_aside"), parameters)
            session.count(query("insert_dead_letters"), parameters)
            _logger.warning(
                "partition %d: %d dead letters of records that the event log lost are kept under another log_id",
                partition,
                aside,
                extra={"action": "dead_letters_set_aside", "partition": partition},
            )
