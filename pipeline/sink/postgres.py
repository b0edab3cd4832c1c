"""The sink in PostgreSQL: stores each event once, in one transaction with its offset in the log."""

import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator

from pipeline.errors import (
    BatchRefusedError,
    OffsetConflictError,
    PoisonedError,
    SinkContentionError,
    SinkUnavailableError,
)
from pipeline.ports.log import LogBatch
from pipeline.ports.sink import StoredPosition, StoreResult
from pipeline.settings import Settings
from pipeline.sink.batches import Written, make_stage, prepare, write_carefully, write_letters, write_straight
from pipeline.sink.locks import naming_holders
from pipeline.sink.poison import PoisonRun, poison_evidence
from pipeline.sink.queries import query
from pipeline.sink.rows import Letter, RowEncoder, place_columns, printable, request_ids
from pipeline.sink.session import Session, StatementRefusedError

_logger = logging.getLogger(__name__)


class PostgresSink:
    """Sink over one connection: opened on first use, reopened after each failure and after a fork."""

    def __init__(self, settings: Settings) -> None:
        self.session = Session(settings)
        self._settings = settings
        self._encoder = RowEncoder()
        self._ahead_encoder = RowEncoder()  # of the thread that prepares rows
        self._held: set[int] = set()  # keys of the locks that this connection holds
        self._held_by = 0  # the generation of that connection
        self._runs: dict[tuple[str, int], PoisonRun] = {}

    def stored_offsets(self, log_id: str) -> dict[int, int]:
        return self.stored_offsets_and_time(log_id)[0]

    def stored_offsets_and_time(self, log_id: str) -> tuple[dict[int, int], float]:
        """The stored offsets, and PostgreSQL's clock (seconds since the epoch) when they were read."""
        found = self.session.rows(query("stored_offsets"), {"log_id": log_id})
        offsets = {int(partition): int(next_offset) for partition, next_offset, _ in found if partition is not None}
        return offsets, float(found[0][2])

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
            self._locks().add(key)
        return got

    def release(self, log_id: str, partition: int) -> None:
        key = lock_key(log_id, partition)
        if key not in self._locks():
            return
        self._locks().discard(key)
        # A connection that fails here is dropped, and the lock goes with it.
        with contextlib.suppress(SinkUnavailableError, SinkContentionError):
            self.session.rows(query("unlock"), {"key": key})

    def prepare(self, log_id: str, partition: int, batch: LogBatch) -> LogBatch:
        return prepare(self._ahead_encoder, log_id, partition, batch)

    def store(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        before_commit: Callable[[], None],
        on_made: Callable[[], None] | None = None,
    ) -> StoreResult:
        run = self._run_of(log_id, partition)

        def write() -> Written:
            self._begin(log_id, partition, expected_offset, batch)
            try:
                written = write_straight(self.session, self._encoder, log_id, partition, batch, on_made=on_made)
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
            written.letters = [Letter(index, printable(why), sqlstate) for index in range(len(batch.values))]
            with _evidence(log_id, expected_offset, batch, written, is_condemned=True):
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
                with _evidence(log_id, expected_offset, batch, written, is_condemned=False):
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
            try:
                session.count(query("probe_storing"), {"id": f"probe {uuid.uuid4().hex}"}, refusable=True)
            except StatementRefusedError as refusal:  # a trigger or constraint that refuses the probe: the server works
                _logger.debug("the probe's event is refused: %s", refusal)
            finally:
                session.rollback()

    def terminate_stalled(self, log_id: str, partition: int) -> bool:
        """End the other backend that holds a partition's lock; returns whether there was one.

        For a frozen drainer: PostgreSQL's time-outs do not free the lock of a stopped client. PostgreSQL rolls back its
        transaction, if it has one. Raises SinkUnavailableError.
        """
        ended = self.session.rows(query("terminate_holder"), {"key": lock_key(log_id, partition)})
        return any(was_sent for _, was_sent in ended)

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

    def _write_carefully(self, log_id: str, partition: int, batch: LogBatch, run: PoisonRun) -> Written:
        letters: list[Letter] = []
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


@contextlib.contextmanager
def _evidence(
    log_id: str, expected_offset: int, batch: LogBatch, written: Written, *, is_condemned: bool
) -> Iterator[None]:
    """Add the evidence to a PoisonedError."""
    try:
        yield
    except PoisonedError as error:
        letters = written.letters
        sample = [(letter.index, letter.reason, letter.sqlstate) for letter in letters]
        error.evidence = poison_evidence(
            log_id, expected_offset, batch, len(letters), sample, is_condemned=is_condemned
        )
        raise


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


def lock_key(log_id: str, partition: int) -> int:
    """The key of a partition's advisory lock: 64 bits, signed, the same in every process and version."""
    digest = hashlib.blake2b(f"sluice drain {log_id} {partition}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
