"""The event sink and the offset store in PostgreSQL: one transaction stores a batch and moves its offset."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from pipeline.errors import (
    BatchRefusedError,
    OffsetConflictError,
    SinkContentionError,
    SinkUnavailableError,
)
from pipeline.ports.event_sink import StoredPosition, StoreResult
from pipeline.ports.log import LogBatch
from pipeline.ports.offset_store import StoredOffsets
from pipeline.ports.rate import BatchStart
from pipeline.settings import Settings
from pipeline.sink import batches
from pipeline.sink.batches import Written, make_stage, write_carefully, write_letters, write_straight
from pipeline.sink.locks import lock_key, naming_holders
from pipeline.sink.poison import PoisonRun, RejectedRecord, evidence
from pipeline.sink.queries import query
from pipeline.sink.rows import EncodedRows, RowEncoder, place_columns, printable, request_ids
from pipeline.sink.session import Session, StatementRefusedError
from pipeline.sink.sqlstate import UNDEFINED_COLUMN
from pipeline.sink.standstill import why_standing

_logger = logging.getLogger(__name__)


class PostgresSink:
    """Event sink and offset store over one connection: opened on first use, reopened after each failure and a fork.

    It compares event ids: an event that a client repeats is stored once.
    """

    def __init__(self, settings: Settings, session: Session | None = None) -> None:
        self.session = session or Session(settings)
        self._settings = settings
        self._encoder = RowEncoder()
        self._ahead_encoder = RowEncoder()  # of the thread that encodes ahead
        self._held: set[int] = set()  # keys of the locks that this connection holds
        self._held_by = 0  # the generation of that connection
        self._runs: dict[tuple[str, int], PoisonRun] = {}

    def stored_offsets(self, log_id: str) -> dict[int, int]:
        found = self.session.rows(query("stored_offsets"), {"log_id": log_id})
        return {int(partition): int(next_offset) for partition, next_offset in found}

    def stored_offsets_and_time(self, log_id: str) -> StoredOffsets:
        """The stored offsets, PostgreSQL's clock when they were read, and where the newest batches began."""
        try:
            found = self.session.rows(query("stored_offsets_and_batches"), {"log_id": log_id})
        except SinkUnavailableError as error:
            if error.sqlstate != UNDEFINED_COLUMN:
                raise
            # This process may not update the schema, and an older version stores: the lag is known all the same.
            return StoredOffsets(self.stored_offsets(log_id), None)
        return StoredOffsets(
            offsets={int(row[0]): int(row[1]) for row in found if row[0] is not None},
            time=float(found[0][4]),
            batches={int(row[0]): BatchStart(int(row[2]), float(row[3])) for row in found if row[2] is not None},
        )

    def settled_offsets(self, log_id: str) -> dict[int, int]:
        try:
            found = self.session.rows(query("settled_offsets"), {"log_id": log_id})
        except SinkContentionError as error:
            raise SinkUnavailableError(str(error)) from error
        finally:
            self.session.rollback()
        return {int(partition): int(next_offset) for partition, next_offset in found}

    def stored_position(self, log_id: str, partition: int) -> StoredPosition | None:
        found = self.session.rows(query("stored_position"), {"log_id": log_id, "partition": partition})
        if not found:
            return None
        next_offset, digest = found[0]
        return StoredPosition(int(next_offset), None if digest is None else bytes(digest))

    def acquire(self, log_id: str, partition: int) -> bool:
        key = lock_key(log_id, partition)
        if key in self._locks():
            return True  # PostgreSQL would count it twice, and require two releases
        got = bool(self.session.rows(query("try_lock"), {"key": key})[0][0])
        if got:
            # The offset that is read next is committed to the log, which is trimmed: no standby may lack it.
            self.session.await_standbys()
            self._locks().add(key)
        return got

    def holds(self, log_id: str, partition: int) -> bool:
        return lock_key(log_id, partition) in self._locks()

    def release(self, log_id: str, partition: int) -> None:
        key = lock_key(log_id, partition)
        if key not in self._locks():
            return
        self._locks().discard(key)
        # A connection that fails here is dropped, and the lock goes with it.
        with contextlib.suppress(SinkUnavailableError, SinkContentionError):
            self.session.rows(query("unlock"), {"key": key})

    def encode(self, log_id: str, partition: int, batch: LogBatch) -> EncodedRows:
        return batches.encode(self._ahead_encoder, log_id, partition, batch)

    def store(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        before_commit: Callable[[], None],
        encoded: EncodedRows | None = None,
        on_moved: Callable[[], None] | None = None,
        on_encoded: Callable[[], None] | None = None,
    ) -> StoreResult:
        run = self._run_of(log_id, partition)

        def on_sent() -> None:
            for begin in (on_moved, on_encoded):
                if begin is not None:
                    begin()

        def write() -> Written:
            self._begin(log_id, partition, expected_offset, batch)
            try:
                written = write_straight(
                    self.session, self._encoder, log_id, partition, batch, encoded=encoded, on_encoded=on_sent
                )
            except StatementRefusedError as refusal:
                _logger.info(
                    "batch at offset %d of partition %d goes through the staging table: %s",
                    batch.offset,
                    partition,
                    refusal,
                    extra={"action": "batch_staged", "sqlstate": refusal.sqlstate, "partition": partition},
                )
                if len(batch.values) > self._settings.drain_careful_records_max:
                    raise BatchRefusedError(str(refusal)) from refusal
                self.session.rollback()
                make_stage(self.session)
                self._begin(log_id, partition, expected_offset, batch)
                if on_moved is not None:
                    on_moved()
                written = self._write_carefully(log_id, partition, batch, run)
            return written

        return self._commit((log_id, partition, expected_offset), batch, write, before_commit)

    def condemn(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        why: str,
        sqlstate: str | None,
        before_commit: Callable[[], None],
    ) -> StoreResult:
        run = self._run_of(log_id, partition)

        def write() -> Written:
            self._begin(log_id, partition, expected_offset, batch)
            written = Written()
            written.letters = [RejectedRecord(index, printable(why), sqlstate) for index in range(len(batch.values))]
            with evidence(log_id, expected_offset, batch, written.letters, is_condemned=True):
                run.check_condemned(len(batch.values), why)
            return written

        result = self._commit((log_id, partition, expected_offset), batch, write, before_commit)
        run.add_condemned(len(batch.values))
        return result

    def _commit(
        self,
        place: tuple[str, int, int],
        batch: LogBatch,
        write: Callable[[], Written],
        before_commit: Callable[[], None],
    ) -> StoreResult:
        """Run `write`, which begins a transaction, and commit it with the dead letters, unless they are poison."""
        log_id, partition, expected_offset = place
        run = self._run_of(log_id, partition)
        started = time.monotonic()
        with naming_holders(self.session):
            try:
                written = write()
                with evidence(log_id, expected_offset, batch, written.letters, is_condemned=False):
                    run.check(len(written.letters), len(batch.values))
                write_letters(self.session, log_id, partition, batch, written.kept)
                before_commit()
                self.session.commit()
            except BaseException:
                self.session.rollback()
                raise
        run.add(len(written.letters), len(batch.values))
        if _logger.isEnabledFor(logging.DEBUG):
            _trace(partition, batch, written)
        return StoreResult(
            stored=written.stored,
            repeated=written.repeated,
            conflicting=len(written.conflicts),
            dead_lettered=len(written.letters),
            received_at_ms=written.received_at_ms,
            seconds=time.monotonic() - started,
        )

    def _run_of(self, log_id: str, partition: int) -> PoisonRun:
        return self._runs.setdefault((log_id, partition), PoisonRun(self._settings))

    def probe(self) -> None:
        session = self.session
        with naming_holders(session):
            session.count(query("probe"))
            session.await_standbys()  # the probe's own wait for them may have been cancelled
            try:
                session.count(query("probe_storing"), {"id": f"probe {uuid.uuid4().hex}"}, refusable=True)
            except StatementRefusedError as refusal:  # a trigger or constraint that refuses the probe: the server works
                _logger.debug("the probe's event is refused: %s", refusal)
            finally:
                session.rollback()

    def why_not_stored(self, log_id: str, partition: int) -> str | None:
        return why_standing(self.session, log_id, partition)

    def end_stalled_drain(self, log_id: str, partition: int, *, quiet_seconds: float) -> bool:
        # PostgreSQL's time-outs do not free the lock of a stopped client, so its backend is ended. PostgreSQL rolls
        # back its transaction, if it has one.
        ended = self.session.rows(
            query("terminate_holder"), {"key": lock_key(log_id, partition), "quiet_seconds": quiet_seconds}
        )
        return any(was_sent for _, was_sent in ended)

    def drained(self, log_id: str, partitions: Sequence[int]) -> set[int]:
        by_key = {lock_key(log_id, partition): partition for partition in partitions}
        return {by_key[int(key)] for (key,) in self.session.rows(query("held_locks"), {"keys": list(by_key)})}

    def close(self) -> None:
        self.session.close()

    def _begin(self, log_id: str, partition: int, expected_offset: int, batch: LogBatch) -> None:
        moved = self.session.count(
            query("begin_and_move_offset"),
            {
                "log_id": log_id,
                "partition": partition,
                "expected_offset": expected_offset,
                "next_offset": batch.next_offset,
                "last_digest": batch.last_digest,
            },
        )
        if moved == 0:
            raise OffsetConflictError(
                f"the stored offset of partition {partition} is not {expected_offset}: another drain has moved it"
            )
        if batch.next_offset < expected_offset and self.session.rows(query("may_lower_log_marks"))[0][0]:
            place = {"log_id": log_id, "partition": partition, "next_offset": batch.next_offset}
            self.session.count(query("lower_log_marks"), place)

    def _write_carefully(self, log_id: str, partition: int, batch: LogBatch, run: PoisonRun) -> Written:
        letters: list[RejectedRecord] = []
        received: list[int] = []
        place = place_columns(log_id, partition)
        rows = list(self._encoder.rows(batch.values, place, batch.offset, letters, received))
        written = write_carefully(
            self.session,
            rows,
            lambda index: (log_id, partition, batch.offset + index),
            letters_max=run.letters_left(len(batch.values)),
            piece_records_max=self._settings.drain_careful_records_max,
        )
        written.letters = sorted([*written.letters, *letters], key=lambda letter: letter.index)
        written.received_at_ms = received
        return written

    def _locks(self) -> set[int]:
        """Keys of the locks that the current connection holds; those of an earlier one are gone."""
        if self._held_by != self.session.generation:
            self._held_by = self.session.generation
            self._held = set()
        return self._held


def _trace(partition: int, batch: LogBatch, written: Written) -> None:
    """Log the requests whose events a batch has stored."""
    names = request_ids(batch.values)
    _logger.debug(
        "batch of partition %d, offsets %d to %d: %d stored, %d dead letters, of requests %s",
        partition,
        batch.offset,
        batch.next_offset - 1,
        written.stored,
        len(written.letters),
        ", ".join(names),
        extra={
            "action": "batch_stored",
            "partition": partition,
            "offset": batch.offset,
            "next_offset": batch.next_offset,
            "stored": written.stored,
            "request_ids": names,
        },
    )
