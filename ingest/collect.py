"""The one path for events: read, decode, admit, append. All protocols use it, and it imports no web framework."""

import asyncio
import logging
import math
from typing import Final

from uuid_utils import uuid7

from ingest.account_counter import AccountCounter
from ingest.appender import Appender
from ingest.entrance import Entrance
from ingest.errors import KeyRefusedError, PartlyStoredError, RateLimitedError, row_of
from ingest.held_bodies import HeldBodies
from ingest.levels import level_of, level_of_priority
from ingest.types import Batch, Codec, Request, Response
from pipeline.clock import Clock
from pipeline.errors import LogIndeterminateError, LogPartialError, SluiceError
from pipeline.event import encode_record, partition_of, record_head
from pipeline.metrics import IngestMetrics, LevelCounts
from pipeline.names import LEVEL_HIGHEST, Level, ProtocolName, RecordOutcome

logger: Final = logging.getLogger(__name__)

RECORDS_AT_ONCE: Final = 1000  # encoded before other requests get a turn: two milliseconds


class Collector:
    """Moves the events of requests into the event log, for one process. For the event loop only."""

    def __init__(
        self,
        entrance: Entrance,
        appender: Appender,
        held_bodies: HeldBodies,
        metrics: IngestMetrics,
        clock: Clock,
        *,
        traces: bool,
        levels: LevelCounts | None = None,
    ) -> None:
        self._entrance = entrance
        self._has_token = entrance.has_token
        self._appender = appender
        self._held_bodies = held_bodies
        self._metrics = metrics
        self._clock = clock
        self.traces = traces  # log a line for each request
        self._levels = levels  # None: ADMISSION_LEVELS is off, and all requests have the highest level
        self.refused_beyond_first = 0  # decoded events of rejected bodies, without the first event of each

    def is_open(self) -> bool:
        """Gate.is_open."""
        return self._has_token() and self._appender.blocked() is None

    @property
    def has_levels(self) -> bool:
        """Gate.has_levels."""
        return self._levels is not None

    @property
    def admits_all_levels(self) -> bool:
        """Gate.admits_all_levels."""
        return self._entrance.admits_all_levels

    def level_of(self, priority: str | None, level_max: Level = LEVEL_HIGHEST) -> Level | None:
        """Gate.level_of."""
        if self._levels is None:
            return LEVEL_HIGHEST
        level = level_of_priority(priority)
        if level is None:
            return level_max if level_max is Level.DEBUG else None  # the lowest one is that of any events
        return min(level, level_max)

    def seconds_closed(self, level: Level = LEVEL_HIGHEST) -> float:
        """Gate.seconds_closed."""
        return math.inf if self._appender.blocked() is not None else self._entrance.seconds_closed(level)

    def seconds_closed_for(self, tally: AccountCounter) -> float:
        """Gate.seconds_closed_for."""
        return self._entrance.seconds_closed_for(tally)

    def refusal(self, level: Level = LEVEL_HIGHEST, tally: AccountCounter | None = None) -> SluiceError | None:
        """Gate.refusal."""
        return self._appender.blocked() or self._entrance.refusal(level, tally)

    def note_rejected(self, level: Level | None) -> None:
        """Gate.note_rejected."""
        if self._levels is not None:
            self._levels.note_refused(level, 1)

    async def collect(self, codec: Codec, request: Request) -> Response:
        """Collect the events of a request, and respond once all of them are durable in the event log."""
        is_own = codec.name is ProtocolName.EVENTS
        try:
            batch = await self._collect(codec, request)
        except SluiceError as error:
            code = row_of(error).code
            if isinstance(error, KeyRefusedError):
                self._metrics.key_refusals.labels(error.reason.value).value += 1
            if self.traces:
                _trace(request.request_id, code, str(error))
            response = codec.rejected(request, error)
            if row_of(error).retryable:
                for counter in self._metrics.refused(codec.name, code, response.status):
                    counter.value += 1
            else:
                self._metrics.answered(codec.name, code, response.status).value += 1
            return response
        count = len(batch.events)
        if self.traces:
            _trace(request.request_id, "accepted", f"{count} events")
        self._metrics.accepted.value += count
        response = batch.accepted()
        if is_own:
            self._metrics.accepted_answers.value += 1
        else:
            self._metrics.answered(codec.name, "accepted", response.status).value += 1
            self._metrics.records(codec.name, RecordOutcome.ACCEPTED).value += count
            if batch.rejected:
                self._metrics.records(codec.name, RecordOutcome.REJECTED).value += batch.rejected
        return response

    async def _collect(self, codec: Codec, request: Request) -> Batch:
        """Collect the events. Raises SluiceError.

        The API key comes first: a request without one learns nothing else.
        """
        tally = request.identify(codec.name)
        headers = request.headers
        decode = codec.decode(request)
        inflate = codec.inflate(headers)
        level: Level | None = LEVEL_HIGHEST
        level_max = LEVEL_HIGHEST
        if self._levels is not None:
            level_max = request.level_max
            level = self.level_of(headers.get("priority"), level_max)
        is_passable = tally.hold is None and self.is_open()
        refusal = None if is_passable else self.refusal(level_max if level is None else level, tally)
        if refusal is not None:
            self.note_rejected(level)
            if isinstance(refusal, RateLimitedError):
                tally.refuse_unread(refusal.limited_by)
            raise refusal
        with self._held_bodies.begin() as held:
            body = await request.receive_body(codec.bytes_max, held)
            head = record_head(int(self._clock.now() * 1000), request.request_id)
            if inflate is not None:
                body = await inflate(body, held)
            batch = await decode(body)
            count = len(batch.events)
            if not count:
                return batch  # a protocol may have bodies without events
            if level is None:
                level = min(level_of(batch.events), level_max)
            try:
                take_now = self._entrance.take_now
                is_admitted = self._entrance.admit_now(tally, count, level) if take_now is None else take_now(count)
                if not is_admitted:
                    await self._entrance.admit(tally, count, level)
                await self._append(batch, head, tally)
            except SluiceError as error:
                self.refused_beyond_first += count - 1
                if isinstance(error, RateLimitedError):
                    tally.refuse(error.limited_by, count)
                if codec.name is not ProtocolName.EVENTS:
                    self._metrics.records(codec.name, RecordOutcome.REFUSED).value += count - 1
                if self._levels is not None:
                    self._levels.note_refused(level, count)
                raise
        if self._levels is not None:
            self._levels.note_accepted(level, count)
        return batch

    async def _append(self, batch: Batch, head: bytes, tally: AccountCounter) -> None:
        """Append admitted events. The tokens of those that are certainly not stored go back: a repeat pays again."""
        entries: list[tuple[int, bytes]] = []
        size = 0
        appended = None
        try:
            partitions = self._appender.partitions
            for first in range(0, len(batch.events), RECORDS_AT_ONCE):
                if first:
                    await asyncio.sleep(0)
                size += _add_records(entries, batch, first, head, partitions)
            appended = self._appender.append(entries, size)
            await appended
        except asyncio.CancelledError:
            if appended is None:  # the client left before the append began
                self._entrance.give_back(tally, len(batch.events))
            raise
        except LogPartialError as error:
            unconfirmed = [index for index, (part, _) in enumerate(entries) if part in error.failures]
            failures = [error.failures[entries[index][0]] for index in unconfirmed]
            self._entrance.give_back(tally, sum(not isinstance(one, LogIndeterminateError) for one in failures))
            raise PartlyStoredError(unconfirmed, len(entries), str(error)) from error
        except LogIndeterminateError:
            raise
        except SluiceError:
            self._entrance.give_back(tally, len(batch.events))
            raise


def _add_records(entries: list[tuple[int, bytes]], batch: Batch, first: int, head: bytes, partitions: int) -> int:
    """Add (partition, record) of some events, from the one with index `first` on; returns the bytes of the records.

    Gives ids to events that have none.
    """
    keys = batch.partition_keys
    size = 0
    for index, event in enumerate(batch.events[first : first + RECORDS_AT_ONCE], start=first):
        if event.event_id is None:
            event.event_id = str(uuid7())
        record = encode_record(event, head)
        size += len(record)
        key = event.correlation_id if keys is None else keys[index]
        entries.append((partition_of(key, partitions), record))
    return size


def _trace(request_id: str, code: str, what: str) -> None:
    """Log the result of a request."""
    extra = {"action": "request_answered", "request_id": request_id, "code": code}
    logger.debug("request %s: %s, %s", request_id, code, what, extra=extra)
