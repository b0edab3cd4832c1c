"""Records that could not be stored for their content: looking at them, and trying them again."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from pipeline.names import LETTER_CONFLICT
from pipeline.ports.sink import DeadLetterCounts
from pipeline.sink.batches import make_stage, write_carefully
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.queries import query
from pipeline.sink.rows import Letter, RowEncoder, place_columns

# Dead letters that are tried in one statement, whatever the limit of a replay: PostgreSQL is silent meanwhile.
_PIECE_RECORDS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that waits for a replay; times are aware."""

    id: int
    log_id: str
    partition: int
    offset: int
    raw: bytes
    reason: str
    sqlstate: str | None  # None: it could not be decoded; of a conflict, that of a repeated key
    created_at: datetime
    tried_at: datetime | None  # last replay that was refused


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What became of the dead letters that a replay took up."""

    stored: int = 0
    repeated: int = 0  # stored before with the same content: done as well
    conflicting: int = 0  # their ids are stored with other content: they stay
    refused: int = 0  # refused once more: they stay, with their new reason


def count_dead_letters(sink: PostgresSink) -> DeadLetterCounts:
    """How many wait for a replay. Raises SinkUnavailableError."""
    return DeadLetterCounts(*sink.session.rows(query("count_dead_letters"), {"conflict": LETTER_CONFLICT})[0])


def list_dead_letters(sink: PostgresSink, *, limit: int, after_id: int = 0) -> list[DeadLetter]:
    """Those that wait for a replay, by id, at most `limit` of them after `after_id`. Raises SinkUnavailableError."""
    found = sink.session.rows(query("list_dead_letters"), {"limit": limit, "after_id": after_id})
    return [
        DeadLetter(number, log_id, partition, offset, bytes(raw), reason, sqlstate, created_at, tried_at)
        for number, log_id, partition, offset, raw, reason, sqlstate, created_at, tried_at in found
    ]


def dead_letters_between(sink: PostgresSink, log_id: str, partition: int, first: int, end: int) -> dict[int, str]:
    """Reasons of the dead letters from offset `first` up to `end`, by offset. Raises SinkUnavailableError."""
    place = {"log_id": log_id, "partition": partition, "first": first, "end": end}
    return {int(offset): str(reason) for offset, reason in sink.session.rows(query("dead_letters_between"), place)}


def replay_dead_letters(sink: PostgresSink, *, limit: int, dry_run: bool = False) -> ReplayResult:
    """Try to store up to `limit` dead letters, and mark them, in one transaction.

    The longest untried come first, so that repeating this reaches all of them; several replays at once take
    different ones. `dry_run` does all of it and rolls back. Raises SinkUnavailableError, SinkContentionError.
    """
    session = sink.session
    make_stage(session)
    try:
        session.count("BEGIN")
        found = session.rows(query("open_dead_letters"), {"limit": limit})
        positions = [(log_id, partition, offset) for _, log_id, partition, offset, _ in found]
        rows, letters = _encode([bytes(raw) for *_, raw in found], positions)
        written = write_carefully(
            session, rows, positions.__getitem__, letters_max=len(found), piece_records_max=_PIECE_RECORDS_MAX
        )
        refused = letters + written.kept
        kept = {letter.index for letter in refused}
        session.count(
            query("mark_replayed"), {"ids": [entry[0] for index, entry in enumerate(found) if index not in kept]}
        )
        session.count(
            query("mark_refused"),
            {
                "ids": [found[letter.index][0] for letter in refused],
                "reasons": [letter.reason for letter in refused],
                "sqlstates": [letter.sqlstate for letter in refused],
            },
        )
        if dry_run:
            session.rollback()
        else:
            session.commit()
    except BaseException:
        session.rollback()
        raise
    return ReplayResult(
        stored=written.stored,
        repeated=written.repeated,
        conflicting=len(written.conflicts),
        refused=len(letters) + len(written.letters),
    )


def _encode(records: list[bytes], positions: list[tuple[str, int, int]]) -> tuple[list[bytes | None], list[Letter]]:
    """Rows of the records (None where there can be none), and a letter for each that has none."""
    encoder = RowEncoder()
    rows: list[bytes | None] = []
    letters: list[Letter] = []
    for index, (record, (log_id, partition, offset)) in enumerate(zip(records, positions, strict=True)):
        refused: list[Letter] = []
        rows += encoder.rows([record], place_columns(log_id, partition), offset, refused, [])
        letters += [replace(letter, index=index) for letter in refused]
    return rows, letters
