"""The event log on Redis Streams: one stream for each partition, with offsets in the entries' ids.

The entry with offset k has the id 0-(k+1). So the *next to read* n is directly the exclusive start 0-n of XREAD, and a
partition's end is the sequence number of its last generated id.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from pipeline.clock import Clock, SystemClock
from pipeline.errors import (
    LogFullError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogUnavailableError,
    RecoverableError,
    about_the_log,
)
from pipeline.flow.age import Age
from pipeline.log.redis_aof import AofRewrite
from pipeline.log.redis_connection import OtherServerError, RedisConnection, RedisFacts, Wire
from pipeline.log.redis_identity import RedisServerLog
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.log.redis_reader import RedisReader
from pipeline.log.redis_replicas import CONFIRM_SECONDS_MAX, ReplicaConfirmation
from pipeline.lua_script import read_script
from pipeline.ports.log import (
    LOST_SHOWN_SECONDS,
    LogBatch,
    LogIdentity,
    LowestOffsetsSource,
    PartitionPosition,
)
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

CALL_SECONDS_MAX: Final = 1.0  # calls other than append: 0.2 ms, but they may wait for the fsync of a large append
ROUNDS_MAX: Final = 3  # of an append that finds, before it writes anything, that the log is not the expected one

# Redis refuses the whole script with these errors, before its first command. The outcome of other errors is unknown.
_REFUSALS: Final = (AuthenticationError, BusyLoadingError, MasterDownError, ReadOnlyError)
_REFUSAL_CODES: Final = ("MISCONF", "NOREPLICAS", "BUSY", "WRONGTYPE")


@dataclass(slots=True)
class _Writer:
    """The facts about the log that an append needs, after older incarnations were fenced off."""

    identity: LogIdentity
    facts: RedisFacts
    keys: list[str]
    entries_max: int  # 0: no limit except the server's memory
    is_confirmed: bool  # LOG_REPLICAS_MIN replicas have confirmed the newest write, or none is needed


class RedisStreamsLog:
    """EventLog on Redis ≥ 7.

    Its weakness: data that Redis holds only in memory is lost with it. `appendonly yes` and `appendfsync always` make a
    202 durable. The adapter warns if there is no AOF, but can't see how often it is synced.

    With LOG_REPLICAS_MIN, each append waits until so many replicas have it. If they don't in time, the append is
    indeterminate, and nothing more is appended before they confirm a write that changes nothing.
    """

    def __init__(self, settings: Settings, lowest_offsets: LowestOffsetsSource, clock: Clock | None = None) -> None:
        self._settings = settings
        self._lowest_offsets = lowest_offsets
        self._clock = clock or SystemClock()
        self._loss_age = Age()
        self._keys = RedisLogKeys(settings.key_prefix)
        folder = Path(__file__).parent
        self._append_script = read_script(folder, "append")
        self._raise_script = read_script(folder, "raise")
        self._commit_script = read_script(folder, "commit")
        self._positions_script = read_script(folder, "positions")
        # `append` may run beside the other calls, and a blocking read needs its own time-out.
        self._append_connection = RedisConnection(settings, answer_seconds_max=settings.append_seconds_max)
        self._reader = RedisReader(self._keys, RedisConnection(settings, answer_seconds_max=CALL_SECONDS_MAX))
        self._connection = RedisConnection(settings, answer_seconds_max=CALL_SECONDS_MAX)
        self._identity: LogIdentity | None = None
        self._writer: _Writer | None = None
        self._former: tuple[str, RedisFacts] | None = None  # log and server of the latest writer
        self._acknowledged: dict[int, int] = {}  # the ends of that log's partitions after the newest confirmed appends
        self._server_log = RedisServerLog(settings, self._keys)
        self._rewrite = AofRewrite(self._clock)
        self._replicas = ReplicaConfirmation(settings, self._keys, self._clock)

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
        former = self._former
        if former is not None and former[1].run_id == facts.run_id:
            self._former = (former[0], facts)  # a master gets another replication id when its first replica comes
        self._update_writer(identity, facts)
        self._identity = identity
        self._reader.expect(identity.incarnation)
        return identity

    def _update_writer(self, identity: LogIdentity, facts: RedisFacts) -> None:
        """Give the writer what was just read. If the log is another one, or came back, `prepare` fences it."""
        writer = self._writer
        if writer is None:
            return
        if writer.identity != identity or any(fault.loses_events for fault in identity.faults):
            self._writer = None
            return
        writer.facts = facts
        if identity.missing_replicas is not None:
            writer.is_confirmed = False  # the next append is refused for certain, and not indeterminate

    def _fence_new(self, identity: LogIdentity) -> None:
        """Publish that no record of a newly created log is stored: the process that appends first may not know this."""
        try:
            self._fence(self._connection, identity)
        except (RecoverableError, OtherServerError) as error:
            logger.warning(
                "a new event log's lowest offsets are not known: %s", error, extra={"action": "log_fence_failed"}
            )
        finally:
            self._connection.expect(None)

    def _fence(self, connection: RedisConnection, identity: LogIdentity) -> None:
        """Fence off older incarnations, and store the lowest offsets in the log: no writer uses an offset below them.

        If the server was restarted in between, this fence might have replaced a newer one of another process. Then this
        raises OtherServerError, and the caller must fence the new incarnation. Other errors are those of the lowest
        offsets, and LogUnavailableError.
        """
        is_new = self._server_log.take_new(identity.log_id)  # at once: other processes may be faster
        lowest_offsets = self._lowest_offsets(identity.log_id, identity.incarnation, is_new=is_new)
        connection.expect(identity.incarnation)
        ends = self._acknowledged if self._former is not None and self._former[0] == identity.log_id else {}
        known = [(p, lowest_offsets.get(p, 0), ends.get(p, 0)) for p in sorted(lowest_offsets.keys() | ends.keys())]
        connection.run(
            self._raise_script,
            [self._keys.log_id, self._keys.ends, *self._keys.streams(identity.partitions)],
            [identity.log_id, identity.incarnation, *(str(number) for item in known for number in item)],
        )

    # --- Append -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        for _ in range(ROUNDS_MAX):
            writer = self._writer or self._fenced_writer()
            try:
                if self._confirm(writer, CONFIRM_SECONDS_MAX):
                    return
            except OtherServerError:
                pass
            self._writer = None
        raise LogUnavailableError("the event log (Redis) changes faster than an append can follow")

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        if not entries:
            return
        deadline = self._clock.monotonic() + self._settings.append_seconds_max
        by_partition: dict[int, list[bytes]] = {}
        for partition, value in entries:
            by_partition.setdefault(partition, []).append(value)
        for _ in range(ROUNDS_MAX):
            writer = self._writer or self._fenced_writer()
            if not by_partition.keys() <= set(range(writer.identity.partitions)):
                raise LogUnavailableError(f"the event log has only {writer.identity.partitions} partitions")
            try:
                if self._is_ready(writer, deadline) and self._append_in_time(writer, by_partition, deadline):
                    return
            except OtherServerError:
                pass
            self._writer = None
        raise LogUnavailableError("the event log (Redis) changes faster than an append can follow")

    def _is_ready(self, writer: _Writer, deadline: float) -> bool:
        """Whether this is still the fenced log. Raises LogUnavailableError if replicas are missing."""
        return self._confirm(writer, min(CONFIRM_SECONDS_MAX, deadline - self._clock.monotonic()))

    def _confirm(self, writer: _Writer, seconds_max: float) -> bool:
        """Let the replicas confirm a write, unless they have confirmed the newest one. As ReplicaConfirmation.check."""
        if writer.is_confirmed:
            return True
        if not self._replicas.check(self._append_connection, writer.identity, writer.facts, seconds_max):
            return False
        writer.is_confirmed = True
        return True

    def _append_in_time(self, writer: _Writer, by_partition: dict[int, list[bytes]], deadline: float) -> bool:
        """Append once, and wait until the replicas have it; False if this is not the fenced log."""
        seconds_left = deadline - self._clock.monotonic()
        if seconds_left <= 0:
            raise LogUnavailableError("the event log (Redis) was ready for the append too late")
        with self._append_connection.connected() as wire:
            ends = self._append_on(wire, writer, by_partition, seconds_left)
            if ends is None:
                return False
            if self._settings.log_replicas_min:
                writer.is_confirmed = False
                self._replicas.wait(wire, writer.facts, deadline)
                writer.is_confirmed = True
        self._acknowledged |= ends
        return True

    # --- The write --------------------------------------------------------------------------------------------------

    def _append_on(
        self, wire: Wire, writer: _Writer, by_partition: dict[int, list[bytes]], seconds_max: float
    ) -> dict[int, int] | None:
        """Append once; the ends of the partitions. None: this is not the fenced log, and nothing was written."""
        identity = writer.identity
        plan: list[str | bytes] = [*writer.keys, identity.log_id, identity.incarnation, str(writer.entries_max)]
        values: list[str | bytes] = []
        for partition in range(identity.partitions):
            mine = by_partition.get(partition, ())
            plan.append(str(len(mine)))
            values += mine
        try:
            answer = wire.run(self._append_script, plan + values, key_count=len(writer.keys), seconds_max=seconds_max)
        except OutOfMemoryError as error:
            raise LogFullError(f"the event log (Redis) is at its memory limit: {error}") from error
        except _REFUSALS as error:
            raise LogUnavailableError(f"the event log (Redis) accepts no events: {error}") from error
        except ResponseError as error:
            if str(error).startswith(_REFUSAL_CODES):
                raise LogUnavailableError(f"the event log (Redis) accepts no events: {error}") from error
            raise LogIndeterminateError(f"the event log (Redis) failed in an append: {error}") from error
        except (RedisError, OSError) as error:
            raise LogIndeterminateError(f"the event log (Redis) did not confirm an append: {error}") from error
        if answer == b"FULL":
            raise LogFullError(f"the event log (Redis) holds its {writer.entries_max} entries (LOG_ENTRIES_MAX)")
        if answer == b"OTHER":
            return None
        return {int(field[1:]): int(end) for field, end in zip(answer[::2], answer[1::2], strict=True)}

    def _fenced_writer(self) -> _Writer:
        """Read the log's identity, its server process and the offsets that must not be reused; fence them."""
        for _ in range(ROUNDS_MAX):
            self._append_connection.expect(None)
            try:
                facts, identity = self._server_log.ask(self._append_connection)
                _refuse_to_lose(identity)
                self._append_connection.expect(identity.incarnation)
                if facts.has_aof:
                    self._rewrite.wait(self._append_connection, facts)
                self._fence(self._append_connection, identity)
            except OtherServerError:
                continue
            except LogUnavailableError:
                raise
            except (RecoverableError, LogMisconfiguredError) as error:
                said = about_the_log(error, "the event log (Redis) accepts no events")
                raise LogUnavailableError(said) from error
            self._note_server(identity, facts)
            self._writer = _Writer(
                identity=identity,
                facts=facts,
                is_confirmed=self._settings.log_replicas_min == 0,
                keys=[self._keys.log_id, self._keys.ends, *self._keys.streams(identity.partitions)],
                entries_max=0 if facts.memory_bytes_max else self._settings.log_entries_max,
            )
            logger.info(
                "appending to the event log (Redis)",
                extra={"action": "log_fenced", "log_id": identity.log_id, "incarnation": identity.incarnation},
            )
            return self._writer
        raise LogUnavailableError("the event log (Redis) restarts faster than it can be followed")

    def _note_server(self, identity: LogIdentity, facts: RedisFacts) -> None:
        """Report that another server process has the log, and forget the ends that were acknowledged before."""
        former, self._former = self._former, (identity.log_id, facts)
        if former is not None and former[0] != identity.log_id:
            ends = ", ".join(f"{partition}: {end}" for partition, end in sorted(self._acknowledged.items()))
            logger.warning(
                "the event log (Redis) is another log now, %s: %s was emptied or replaced. This process had its "
                "records acknowledged up to the offsets %s; those that were not stored are lost",
                identity.log_id,
                former[0],
                ends or "unknown",
                extra={"action": "log_replaced", "log_id": identity.log_id},
            )
        elif former is None or former[1].run_id == facts.run_id:
            pass
        elif former[1].replication_id == facts.former_replication_id:
            logger.warning(
                "the event log (Redis) is another server now: a replica has taken the place of its master",
                extra={"action": "log_failover", "log_id": identity.log_id, "incarnation": identity.incarnation},
            )
        else:
            logger.warning(
                "the event log (Redis) was restarted, or is another server now",
                extra={"action": "log_restarted", "log_id": identity.log_id, "incarnation": identity.incarnation},
            )
        self._acknowledged = {}  # the fence has compared them with what the log still has

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
        for each in (self._append_connection, self._reader, self._connection):
            each.close()


def _refuse_to_lose(identity: LogIdentity) -> None:
    """Raise LogUnavailableError if an append could make the log lose events. What it holds is drained meanwhile."""
    for fault in identity.faults:
        if fault.loses_events:
            raise LogUnavailableError(f"the event log (Redis) accepts no events: {fault.what}: {fault.remedy}")


def _known(number: int) -> int | None:
    """A number from a script, which returns -1 for none."""
    return None if number < 0 else number
