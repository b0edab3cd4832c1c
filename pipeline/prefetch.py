"""The batches in memory: reads the next one while the last is stored, checks for holes, bounds the memory."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final, Generic, NamedTuple

from pipeline.clock import Clock
from pipeline.errors import LogGapError, RecoverableError
from pipeline.ports.event_sink import Encoded
from pipeline.ports.log import EventLog, LogBatch
from pipeline.settings import Settings
from pipeline.text import counted

_logger = logging.getLogger(__name__)

# While there is a backlog, the offset is committed to the log at most this often: each commit costs the log a trim and
# a write to disk. Without a backlog it is committed before every wait, so that the log's lag is right.
_COMMIT_SECONDS: Final = 0.1
# Assumed size of records before their size is known: that of the largest message.
_RECORD_BYTES_FIRST: Final = 64 * 1024


class Piece(NamedTuple, Generic[Encoded]):
    """A batch in memory, the offset that must be stored before it, and what the sink has encoded of it ahead."""

    expected_offset: int
    batch: LogBatch
    encoded: Encoded | None = None


class Prefetch(Generic[Encoded]):
    """A partition's pieces in memory, oldest first.

    Bounded: the records of one read, plus one more read by a helper thread while the last piece is being stored. The
    number of requested records follows the size of the last ones; as long as that is not known, a full read of a few is
    followed by one of the rest of the batch. A batch with more bytes than a transaction may have is cut into pieces.
    Weakness: a read of `drain_batch_records_max` records that are suddenly much larger than those before is held in
    memory as a whole.

    While the last piece is stored, the server must not wait for this process. So the helper thread also does what a
    batch costs apart from that: it measures the records, and frees those that are stored (0.2 ms each with 5,000).

    Two threads never call the log at once: every method that calls it first waits for the helper thread. Other callers
    of the log must do the same (`settle`).
    """

    def __init__(
        self,
        log: EventLog,
        partition: int,
        settings: Settings,
        *,
        clock: Clock,
        executor: ThreadPoolExecutor,
        encode: Callable[[LogBatch], Encoded | None],
    ) -> None:
        self._log = log
        self._partition = partition
        self._settings = settings
        self._clock = clock
        self._executor = executor
        self._encode = encode
        self._pieces: deque[Piece[Encoded]] = deque()
        self._spent: Piece[Encoded] | None = None  # the last piece that was stored: the helper thread frees it
        self._ahead: tuple[int, Future[_Read[Encoded]]] | None = None
        self._commit_due: tuple[str, int] | None = None  # the log, and the offset that is not committed to it yet
        self._committing: Future[None] | None = None
        self._committed_at = clock.monotonic()
        self._records_next = max(
            1, min(settings.drain_batch_records_max, settings.drain_batch_bytes_max // _RECORD_BYTES_FIRST)
        )
        self._is_size_known = False
        self._read_was_full = False

    @property
    def first(self) -> Piece[Encoded] | None:
        """The oldest piece."""
        return self._pieces[0] if self._pieces else None

    @property
    def more(self) -> bool:
        """Whether there are probably more records to read."""
        return bool(self._pieces) or self._read_was_full

    def limit(self, records_max: int) -> None:
        """Cut the oldest piece in two if it has more than `records_max` records."""
        expected_offset, batch, _ = self._pieces[0]
        if len(batch.values) <= records_max:
            return
        rest = LogBatch(batch.offset + records_max, batch.values[records_max:])
        self._pieces[0] = Piece(rest.offset, rest)
        self._pieces.appendleft(Piece(expected_offset, replace(batch, values=batch.values[:records_max])))

    def pop(self, log_id: str) -> int:
        """Remove the oldest piece, of the log `log_id`, because it is stored; return the offset after it."""
        self._spent = self._pieces.popleft()
        next_offset = self._spent.batch.next_offset
        self._commit_due = log_id, next_offset
        return next_offset

    def drop(self) -> None:
        """Drop all pieces in memory. A due commit stays due: for the log that the records were read from."""
        self.settle()
        self._pieces.clear()

    def stored_up_to(self, log_id: str, offset: int) -> None:
        """Remember an offset of the log `log_id`, to commit it with one of the next reads."""
        self._commit_due = log_id, offset

    def commit_offsets(self) -> None:
        """Commit to the log what is committed in the sink: for its lag, and so that it can be trimmed."""
        self._await_commit()
        due = self._take_due()
        if due is not None:
            log_id, offset = due
            self._log.commit(log_id, self._partition, offset)

    def read(self, offset: int, wait_seconds: float) -> None:
        """Wait for records from `offset` on. Raises as EventLog.read does, and LogGapError for a hole."""
        self.commit_offsets()
        self._spent = None
        is_first = not self._is_size_known
        batch = self._log_read(offset, wait_seconds)
        self._take(offset, self._cut(batch))
        if is_first and batch is not None and self._read_was_full and len(batch.values) < self._records_next:
            self._read_rest(offset, batch)

    def _read_rest(self, offset: int, batch: LogBatch) -> None:
        """Let `batch`, the only one in memory and read at `offset`, grow to a transaction's size, if there is more.

        Otherwise PostgreSQL would store a few records, and then wait for a read of many.
        """
        wanted = self._records_next - len(batch.values)
        try:
            rest = self._log.read(self._partition, batch.next_offset, records_max=wanted, wait_seconds=0.0)
        except (RecoverableError, LogGapError) as error:
            _logger.debug("the rest of a batch of partition %d can't be read: %s", self._partition, error)
            return  # the next read finds the same
        if rest is None or rest.offset != batch.next_offset:  # a hole: the next read judges it
            return
        self._pieces.clear()
        self._add(offset, self._cut(replace(batch, values=[*batch.values, *rest.values])))
        self._read_was_full = len(rest.values) >= wanted

    def begin(self) -> None:
        """Start to read the records after the last piece in memory, if that piece is the next to be stored."""
        if self._ahead is None and len(self._pieces) == 1:
            offset = self._pieces[0].batch.next_offset
            self._ahead = offset, self._executor.submit(self._read_and_encode, offset)
            if self._clock.monotonic() - self._committed_at >= _COMMIT_SECONDS:
                due = self._take_due()
                if due is not None:  # after the read, so that storing never waits for it
                    log_id, stored = due
                    self._committing = self._executor.submit(self._log.commit, log_id, self._partition, stored)

    def collect(self) -> None:
        """Wait for the read that was started, and append its records to those in memory. Raises as `read` does."""
        if self._ahead is not None:
            (offset, future), self._ahead = self._ahead, None
            self._take(offset, future.result())

    def settle(self) -> None:
        """The same after a failure. A failed read does not matter here, because it will be retried."""
        try:
            self.collect()
        except (RecoverableError, LogGapError) as error:
            _logger.debug("read ahead of partition %d failed too: %s", self._partition, error)
        self._await_commit()

    def _await_commit(self) -> None:
        if self._committing is not None:
            self._committing.result()
            self._committing = None

    def _take_due(self) -> tuple[str, int] | None:
        due, self._commit_due = self._commit_due, None
        self._committed_at = self._clock.monotonic()
        return due

    def _log_read(self, offset: int, wait_seconds: float) -> LogBatch | None:
        return self._log.read(self._partition, offset, records_max=self._records_next, wait_seconds=wait_seconds)

    def _read_and_encode(self, offset: int) -> "_Read[Encoded]":
        """Read ahead, and encode the pieces for the sink; on the helper thread.

        It takes what is there, and never waits for more: Redis looks at the time-outs of blocked reads only when its
        timer comes, so a wait of 5 ms lasted up to 0.25 s, and the run waited with it.
        """
        self._spent = None
        read = self._cut(self._log_read(offset, wait_seconds=0.0))
        return read._replace(encoded=[self._encode(piece) for piece in read.pieces])

    def _cut(self, batch: LogBatch | None) -> "_Read[Encoded]":
        """A batch, cut into pieces that fit a transaction."""
        if batch is None or not batch.values:
            return _Read(None, 0, [], [])
        sizes = [len(value) for value in batch.values]
        ends = cuts(sizes, self._settings.drain_batch_bytes_max)
        pieces = [batch]
        if len(ends) > 1:
            pieces = [LogBatch(batch.offset + first, batch.values[first:end]) for first, end in ends]
        return _Read(batch, sum(sizes), pieces, [None] * len(pieces))

    def _take(self, offset: int, read: "_Read[Encoded]") -> None:
        """Add a batch that was read at `offset`, in pieces. Raises LogGapError if records are missing."""
        batch = read.batch
        if batch is None:
            self._read_was_full = False
            return
        _check_hole(self._partition, offset, batch)
        self._read_was_full = len(batch.values) >= self._records_next
        self._add(offset, read)

    def _add(self, offset: int, read: "_Read[Encoded]") -> None:
        """Add the pieces of a read at `offset`, and note the size of its records."""
        count = sum(len(piece.values) for piece in read.pieces)
        bytes_max = self._settings.drain_batch_bytes_max
        self._records_next = max(
            1, min(self._settings.drain_batch_records_max, bytes_max * count // max(1, read.bytes))
        )
        self._is_size_known = True
        for piece, encoded in zip(read.pieces, read.encoded, strict=True):
            self._pieces.append(Piece(offset, piece, encoded))
            offset = piece.next_offset


class _Read(NamedTuple, Generic[Encoded]):
    """What one read brought: the batch with records (None: nothing), its bytes, its pieces, and these as encoded."""

    batch: LogBatch | None
    bytes: int
    pieces: list[LogBatch]
    encoded: list[Encoded | None]


def _check_hole(partition: int, offset: int, batch: LogBatch) -> None:
    """Raise LogGapError if `batch` does not follow `offset`, unless the log itself declares the hole."""
    if batch.offset == offset:
        return
    if batch.gap_from is None or not batch.gap_from <= offset <= batch.offset:
        if batch.offset < offset:
            found = f"returns a record at offset {batch.offset}, and {offset} is the next to be stored"
        else:
            records = counted(batch.offset - offset, "record")
            found = f"no longer has the next {records} to store, at offsets {offset} to {batch.offset - 1}"
        raise LogGapError(f"partition {partition}: the event log {found}")
    _logger.warning(
        "partition %d: the event log came back without its tail: offsets %d to %d hold nothing",
        partition,
        offset,
        batch.offset - 1,
        extra={"action": "log_gap_declared", "partition": partition},
    )


def cuts(sizes: list[int], bytes_max: int) -> list[tuple[int, int]]:
    """Consecutive ranges [first, end) of at most `bytes_max` each; a single larger record gets its own range."""
    if sum(sizes) <= bytes_max:
        return [(0, len(sizes))]
    cuts: list[tuple[int, int]] = []
    first = total = 0
    for index, size in enumerate(sizes):
        if index > first and total + size > bytes_max:
            cuts.append((first, index))
            first, total = index, 0
        total += size
    cuts.append((first, len(sizes)))
    return cuts
