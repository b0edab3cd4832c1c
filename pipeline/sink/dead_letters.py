"""Dead letters in PostgreSQL: counts and lists them, and tries to store them again."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from pipeline.names import LETTER_CONFLICT
from pipeline.ports.dead_letters import DeadLetterCounts, ReplayResult
from pipeline.sink.batches import make_stage, write_carefully
from pipeline.sink.poison import RejectedRecord
from pipeline.sink.queries import query
from pipeline.sink.rows import RowEncoder, place_columns
from pipeline.sink.session import Session

# Dead letters tried in one statement, whatever the limit of a replay: PostgreSQL sends nothing during a statement.
_PIECE_RECORDS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that waits for a replay; times have a time zone."""

    id: int
    log_id: str
    partition: int
    offset: int
    raw: bytes
    reason: str
    sqlstate: str | None  # None: the record could not be decoded; for a conflict, that of a repeated key
    created_at: datetime
    tried_at: datetime | None  # time of the last refused replay


class PostgresDeadLetters:
    """Dead letters over a connection that other stores may share."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def count(self) -> DeadLetterCounts:
        return DeadLetterCounts(*self._session.rows(query("count_dead_letters"), {"conflict": LETTER_CONFLICT})[0])

    def listed(self, *, limit: int, after_id: int = 0) -> list[DeadLetter]:
        """At most `limit` dead letters that wait for a replay, by id, after `after_id`. Raises SinkUnavailableError."""
        found = self._session.rows(query("list_dead_letters"), {"limit": limit, "after_id": after_id})
        return [
            DeadLetter(number, log_id, partition, offset, bytes(raw), reason, sqlstate, created_at, tried_at)
            for number, log_id, partition, offset, raw, reason, sqlstate, created_at, tried_at in found
        ]

    def between(self, log_id: str, partition: int, first: int, end: int) -> dict[int, str]:
        place = {"log_id": log_id, "partition": partition, "first": first, "end": end}
        found = self._session.rows(query("dead_letters_between"), place)
        return {int(offset): str(reason) for offset, reason in found}

    def replay(self, *, limit: int, dry_run: bool = False) -> ReplayResult:
        session = self._session
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


def _encode(
    records: list[bytes], positions: list[tuple[str, int, int]]
) -> tuple[list[bytes | None], list[RejectedRecord]]:
    """Rows of the records (None for a record that has no row), and a letter for each record without a row."""
    encoder = RowEncoder()
    rows: list[bytes | None] = []
    letters: list[RejectedRecord] = []
    for index, (record, (log_id, partition, offset)) in enumerate(zip(records, positions, strict=True)):
        refused: list[RejectedRecord] = []
        rows += encoder.rows([record], place_columns(log_id, partition), offset, refused, [])
        letters += [replace(letter, index=index) for letter in refused]
    return rows, letters
