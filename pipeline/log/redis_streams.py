"""The event log on Redis Streams: one stream for each partition, with offsets in the entries' ids.

The entry with offset k has the id 0-(k+1). So the *next to read* n is directly the exclusive start 0-n of XREAD, and a
partition's end is the sequence number of its last generated id.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pipeline.clock import Clock, SystemClock
from pipeline.errors import LogUnavailableError, RecoverableError
from pipeline.flow.age import Age
from pipeline.log.redis_connection import OtherServerError, RedisConnection
from pipeline.log.redis_identity import RedisServerLog
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.log.redis_reader import RedisReader
from pipeline.log.redis_writer import RedisWriter
from pipeline.lua_script import read_script
from pipeline.ports.log import LOST_SHOWN_SECONDS, LogBatch, LogIdentity, LowestOffsetsSource, PartitionPosition
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

CALL_SECONDS_MAX: Final = 1.0  # calls other than append: 0.2 ms, but they may wait for the fsync of a large append


class RedisStreamsLog:
    """EventLog on Redis ≥ 7.

    Its weakness: data that Redis holds only in memory is lost with it. `appendonly yes` and `appendfsync always` make a
    202 durable. The adapter warns if there is no AOF, but can't see how often it is synced.

    With LOG_REPLICAS_MIN, each append waits until so many replicas have it. If they don't in time, the append is
    indeterminate, and nothing more is appended before they confirm a write that changes nothing.
    """

    def __init__(self, settings: Settings, lowest_offsets: LowestOffsetsSource, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._loss_age = Age()
        self._keys = RedisLogKeys(settings.key_prefix)
        folder = Path(__file__).parent
        self._commit_script = read_script(folder, "commit")
        self._positions_script = read_script(folder, "positions")
        self._server_log = RedisServerLog(settings, self._keys)
        # `append` may run beside the other calls, and a blocking read needs its own time-out.
        append_connection = RedisConnection(settings, answer_seconds_max=settings.append_seconds_max)
        self._writer = RedisWriter(
            settings,
            self._keys,
            append_connection,
            server_log=self._server_log,
            lowest_offsets=lowest_offsets,
            clock=self._clock,
        )
        self._reader = RedisReader(self._keys, RedisConnection(settings, answer_seconds_max=CALL_SECONDS_MAX))
        self._connection = RedisConnection(settings, answer_seconds_max=CALL_SECONDS_MAX)
        self._identity: LogIdentity | None = None

    # --- Who the log is ---------------------------------------------------------------------------------------------

    def identity(self) -> LogIdentity:
        facts, identity = self._server_log.ask(self._connection)
        if not facts.has_aof:
            logger.warning(
                "the event log (Redis) keeps no append-only file: what it acknowledged is lost when it ends",
                extra={"action": "log_without_aof"},
            )
        if self._server_log.is_new(identity.log_id):
            self._fence_new(identity)
        self._writer.update(identity, facts)
        self._identity = identity
        self._reader.expect(identity.incarnation)
        return identity

    def _fence_new(self, identity: LogIdentity) -> None:
        """Publish that no record of a newly created log is stored: the process that appends first may not know this."""
        try:
            self._writer.fence(self._connection, identity)
        except (RecoverableError, OtherServerError) as error:
            logger.warning(
                "a new event log's lowest offsets are not known: %s", error, extra={"action": "log_fence_failed"}
            )
        finally:
            self._connection.expect(None)

    # --- Append -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._writer.prepare()

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        if entries:
            self._writer.append(entries)

    # --- Read -------------------------------------------------------------------------------------------------------

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        identity = self._identity or self.identity()
        return self._reader.read(identity.log_id, partition, offset, records_max, wait_seconds)

    def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
        if not offsets:
            return set()
        identity = self._identity or self.identity()
        return self._reader.ready(identity.log_id, offsets, wait_seconds)

    # --- Commit and positions ---------------------------------------------------------------------------------------

    def commit(self, log_id: str, partition: int, offset: int) -> None:
        try:
            said = self._connection.run(
                self._commit_script,
                [self._keys.log_id, self._keys.stream(partition), self._keys.committed],
                [log_id, str(partition), str(offset), "1" if self._settings.log_trim else "0"],
            )
        except RecoverableError as error:
            logger.warning("commit to the event log failed: %s", error, extra={"action": "log_commit_failed"})
            return
        if said != b"OK":
            logger.warning(
                "commit to the event log was ignored: %s",
                "it ends before that offset" if said == b"BEYOND" else "this is another log",
                extra={"action": "log_commit_ignored", "partition": partition, "offset": offset},
            )

    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        if log_id is None:
            identity = self._identity or self.identity()
        else:
            identity = LogIdentity(log_id, "", int(log_id.rpartition(".")[2]))
        numbers = self._connection.run(
            self._positions_script,
            [self._keys.log_id, self._keys.committed, self._keys.ends, *self._keys.streams(identity.partitions)],
            [identity.log_id, identity.incarnation],
        )
        if numbers is None:
            raise LogUnavailableError("the event log (Redis) is not the same log as at the last check")
        *numbers, lost_at, lost_seconds = numbers
        is_shown = lost_at and self._is_loss_shown((identity.incarnation, lost_at), lost_seconds)
        return [
            PartitionPosition(partition, begin, end, _known(committed), _known(next_offset), lost if is_shown else 0)
            for partition, (begin, end, committed, next_offset, lost) in enumerate(
                zip(*(numbers[place::5] for place in range(5)), strict=True)
            )
        ]

    def _is_loss_shown(self, loss: tuple[str, int], said_seconds: int) -> bool:
        """Whether it was found within LOST_SHOWN_SECONDS, as far as the server's clock was not stepped before."""
        return self._loss_age.of(loss, said_seconds, now=self._clock.monotonic()) < LOST_SHOWN_SECONDS

    def close(self) -> None:
        for each in (self._writer, self._reader, self._connection):
            each.close()


def _known(number: int) -> int | None:
    """A number from a script, which returns -1 for none."""
    return None if number < 0 else number
