"""The event sink and offset store in memory: as in PostgreSQL, with simulated faults. For tests and simulation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from pipeline.errors import BatchRefusedError, OffsetConflictError, SinkContentionError, SinkUnavailableError
from pipeline.event import RecordedEvent, decode_record, is_repeat
from pipeline.names import LETTER_CONFLICT
from pipeline.ports.event_sink import StoredPosition, StoreResult
from pipeline.ports.log import LogBatch
from pipeline.ports.offset_store import StoredOffsets
from pipeline.settings import Settings
from pipeline.sink.poison import PoisonRun


@dataclass(frozen=True, slots=True)
class MemoryLetter:
    """A dead letter."""

    raw: bytes
    reason: str


@dataclass
class MemoryDatabase:
    """The data that the sinks of one test share, like connections share a database; and the simulated faults."""

    events: dict[str, RecordedEvent] = field(default_factory=dict)
    places: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # event_id -> log_id, partition, offset
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    digests: dict[tuple[str, int], bytes | None] = field(default_factory=dict)  # of the last record before an offset
    letters: dict[tuple[str, int, int], MemoryLetter] = field(default_factory=dict)
    locks: dict[tuple[str, int], "MemorySink"] = field(default_factory=dict)
    probes: int = 0

    is_down: bool = False  # every call fails
    is_locked: bool = False  # `store` and `probe` fail: another session has locked the table
    fails_for: Callable[[RecordedEvent], str | None] | None = (
        None  # why `store` fails as a whole, for one of its events
    )
    store_is_down: bool = False  # only `store` fails: a full disk
    contentions: int = 0  # this many calls of `store` fail with SinkContentionError
    refuses: Callable[[RecordedEvent], str | None] | None = None  # the reason why an event is refused
    dies_at_commit: Literal["before", "after"] | None = None  # once: whether that commit took effect

    def keep_letters(self, letters: dict[tuple[str, int, int], MemoryLetter]) -> None:
        """Keep dead letters. A letter of another record at the same place (before the log lost its tail) is moved."""
        for place, letter in letters.items():
            earlier = self.letters.get(place)
            if earlier is not None and earlier.raw != letter.raw:
                log_id, partition, offset = place
                self.letters[f"{log_id} before {len(self.letters)}", partition, offset] = earlier
            self.letters[place] = letter


class MemorySink:
    """One connection to a MemoryDatabase."""

    def __init__(self, settings: Settings, store: MemoryDatabase | None = None) -> None:
        self.database = store or MemoryDatabase()
        self._settings = settings
        self._runs: dict[tuple[str, int], PoisonRun] = {}

    def stored_offsets(self, log_id: str) -> dict[int, int]:
        self._ask()
        return {partition: offset for (log, partition), offset in self.database.offsets.items() if log == log_id}

    def stored_offsets_and_time(self, log_id: str) -> StoredOffsets:
        return StoredOffsets(self.stored_offsets(log_id), None)

    def settled_offsets(self, log_id: str) -> dict[int, int]:
        return self.stored_offsets(log_id)

    def why_not_stored(self, log_id: str, partition: int) -> str | None:
        self._ask()
        return "another sink holds it" if (log_id, partition) in self.database.locks else None

    def end_stalled_drain(self, log_id: str, partition: int, *, quiet_seconds: float) -> bool:
        self._ask()
        return self.database.locks.pop((log_id, partition), None) is not None

    def drained(self, log_id: str, partitions: Sequence[int]) -> set[int]:
        self._ask()
        return {one for one in partitions if (log_id, one) in self.database.locks}

    def stored_position(self, log_id: str, partition: int) -> StoredPosition | None:
        self._ask()
        key = (log_id, partition)
        next_offset = self.database.offsets.get(key)
        return None if next_offset is None else StoredPosition(next_offset, self.database.digests.get(key))

    def acquire(self, log_id: str, partition: int) -> bool:
        self._ask()
        return self.database.locks.setdefault((log_id, partition), self) is self

    def holds(self, log_id: str, partition: int) -> bool:
        return self.database.locks.get((log_id, partition)) is self

    def release(self, log_id: str, partition: int) -> None:
        if self.holds(log_id, partition):
            del self.database.locks[log_id, partition]

    def encode(self, log_id: str, partition: int, batch: LogBatch) -> None:
        return None

    def store(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        before_commit: Callable[[], None],
        encoded: None = None,
        on_moved: Callable[[], None] | None = None,
        on_encoded: Callable[[], None] | None = None,
    ) -> StoreResult:
        self._ask()
        database = self.database
        if database.store_is_down:
            raise SinkUnavailableError("no space left on device", is_a_row_possible=False)
        self._ask_lock()
        if database.contentions > 0:
            database.contentions -= 1
            raise SinkContentionError
        if database.offsets.get((log_id, partition), expected_offset) != expected_offset:
            raise OffsetConflictError
        if on_moved is not None:
            on_moved()
        run = self._runs.setdefault((log_id, partition), PoisonRun(self._settings))
        draft = _Draft(database)
        for index, value in enumerate(batch.values):
            if database.fails_for is not None and (why := database.fails_for(decode_record(value))):
                self._fail(why)
            draft.take(value, (log_id, partition, batch.offset + index))
        if on_encoded is not None:
            on_encoded()
        if draft.is_refused and len(batch.values) > self._settings.drain_careful_records_max:
            raise BatchRefusedError
        run.check(len(draft.letters), len(batch.values))
        before_commit()
        self._commit(draft, (log_id, partition), batch)
        run.add(len(draft.letters), len(batch.values))
        return StoreResult(
            stored=len(draft.events),
            repeated=draft.repeated,
            conflicting=len(draft.conflicts),
            dead_lettered=len(draft.letters),
        )

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
        self._ask()
        if self.database.offsets.get((log_id, partition), expected_offset) != expected_offset:
            raise OffsetConflictError
        run = self._runs.setdefault((log_id, partition), PoisonRun(self._settings))
        draft = _Draft(self.database)
        for index, value in enumerate(batch.values):
            draft.letters[log_id, partition, batch.offset + index] = MemoryLetter(value, why)
        run.check_condemned(len(batch.values), why)
        run.check(len(draft.letters), len(batch.values))
        before_commit()
        self._commit(draft, (log_id, partition), batch)
        run.add(len(draft.letters), len(batch.values))
        run.add_condemned(len(batch.values))
        return StoreResult(dead_lettered=len(draft.letters))

    def probe(self) -> None:
        self._ask()
        if self.database.store_is_down:
            raise SinkUnavailableError("no space left on device", is_a_row_possible=False)
        self._ask_lock()
        self.database.probes += 1

    def close(self) -> None:
        self._disconnect()

    def _ask(self) -> None:
        if self.database.is_down:
            self._fail("the memory sink is down")

    def _ask_lock(self) -> None:
        if self.database.is_locked:
            raise SinkUnavailableError("timed out waiting for a lock", is_a_row_possible=False)

    def _commit(self, draft: "_Draft", key: tuple[str, int], batch: LogBatch) -> None:
        database = self.database
        dying, database.dies_at_commit = database.dies_at_commit, None
        if dying == "before":
            self._fail("connection lost before COMMIT was carried out")
        database.events.update(draft.events)
        database.places.update(draft.places)
        database.keep_letters(draft.letters | draft.conflicts)
        database.offsets[key] = batch.next_offset
        database.digests[key] = batch.last_digest
        if dying == "after":
            self._fail("connection lost after COMMIT was carried out")

    def _fail(self, message: str) -> None:
        self._disconnect()
        raise SinkUnavailableError(message)

    def _disconnect(self) -> None:
        for key in [key for key, owner in self.database.locks.items() if owner is self]:
            del self.database.locks[key]


class _Draft:
    """A transaction's changes, not yet committed."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self.events: dict[str, RecordedEvent] = {}
        self.places: dict[str, tuple[str, int, int]] = {}
        self.letters: dict[tuple[str, int, int], MemoryLetter] = {}
        self.repeated = 0
        self.is_refused = False  # the table refused one of the rows: COPY would not store it
        self.conflicts: dict[tuple[str, int, int], MemoryLetter] = {}  # also kept as letters; not poison

    def take(self, value: bytes, place: tuple[str, int, int]) -> None:
        """Put one record into the matching collection."""
        try:
            event = decode_record(value)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.letters[place] = MemoryLetter(value, f"not an event: {error}")
            return
        reason = _refusal(event) or (self._database.refuses(event) if self._database.refuses else None)
        if reason is not None:
            self.letters[place] = MemoryLetter(value, reason)
            self.is_refused = True
            return
        earlier = self._database.events.get(event.event_id) or self.events.get(event.event_id)
        if earlier is None:
            self.events[event.event_id] = event
            self.places[event.event_id] = place
            return
        self.is_refused = True
        if is_repeat(earlier, event):
            self.repeated += 1
        else:
            self.conflicts[place] = MemoryLetter(value, LETTER_CONFLICT)


def _refusal(event: RecordedEvent) -> str | None:
    """PostgreSQL's error for this event: its text columns can't contain NUL."""
    texts = [event.event_id, event.correlation_id, event.severity, event.message, event.source]
    for key, value in (event.attributes or {}).items():
        texts += [key, str(value)]
    return "invalid byte sequence: 0x00" if any("\0" in text for text in texts) else None
