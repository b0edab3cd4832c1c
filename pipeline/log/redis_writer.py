"""Appends to the streams of an event log, after older incarnations of it were fenced off."""

import logging
from collections.abc import Sequence
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

from pipeline.clock import Clock
from pipeline.errors import (
    LogFullError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogUnavailableError,
    RecoverableError,
    about_the_log,
)
from pipeline.log.redis_aof import AofRewrite
from pipeline.log.redis_connection import OtherServerError, RedisConnection, RedisFacts, Wire
from pipeline.log.redis_identity import RedisServerLog
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.log.redis_replicas import CONFIRM_SECONDS_MAX, ReplicaConfirmation
from pipeline.lua_script import read_script
from pipeline.ports.log import LogIdentity, LowestOffsetsSource
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

ROUNDS_MAX: Final = 3  # of an append that finds, before it writes anything, that the log is not the expected one

# Redis refuses the whole script with these errors, before its first command. The outcome of other errors is unknown.
_REFUSALS: Final = (AuthenticationError, BusyLoadingError, MasterDownError, ReadOnlyError)
_REFUSAL_CODES: Final = ("MISCONF", "NOREPLICAS", "BUSY", "WRONGTYPE")


@dataclass(slots=True)
class _Fenced:
    """The facts about the log that an append needs, after older incarnations were fenced off."""

    identity: LogIdentity
    facts: RedisFacts
    keys: list[str]
    entries_max: int  # 0: no limit except the server's memory
    is_confirmed: bool  # LOG_REPLICAS_MIN replicas have confirmed the newest write, or none is needed


class RedisWriter:
    """The appending side of a RedisStreamsLog. It has its own connection, so it may run beside the other calls.

    The first append fences: it lets the log know its server process, and the offsets that must not be used again. So
    does the first one after each change of the server process or of the log.
    """

    def __init__(
        self,
        settings: Settings,
        keys: RedisLogKeys,
        connection: RedisConnection,
        *,
        server_log: RedisServerLog,
        lowest_offsets: LowestOffsetsSource,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._connection = connection
        self._server_log = server_log
        self._lowest_offsets = lowest_offsets
        self._clock = clock
        folder = Path(__file__).parent
        self._append_script = read_script(folder, "append")
        self._raise_script = read_script(folder, "raise")
        self._fenced: _Fenced | None = None  # None: the next append reads and fences the log first
        self._former: tuple[str, RedisFacts] | None = None  # log and server that were fenced last
        self._acknowledged: dict[int, int] = {}  # the ends of that log's partitions after the newest confirmed appends
        self._rewrite = AofRewrite(clock)
        self._replicas = ReplicaConfirmation(settings, keys, clock)

    def prepare(self) -> None:
        """EventLog.prepare."""
        for _ in range(ROUNDS_MAX):
            fenced = self._fenced or self._fence_current()
            try:
                if self._confirm(fenced, CONFIRM_SECONDS_MAX):
                    return
            except OtherServerError:
                pass
            self._fenced = None
        raise LogUnavailableError("the event log (Redis) changes faster than an append can follow")

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """EventLog.append, of at least one entry."""
        deadline = self._clock.monotonic() + self._settings.append_seconds_max
        by_partition: dict[int, list[bytes]] = {}
        for partition, value in entries:
            by_partition.setdefault(partition, []).append(value)
        for _ in range(ROUNDS_MAX):
            fenced = self._fenced or self._fence_current()
            if not by_partition.keys() <= set(range(fenced.identity.partitions)):
                raise LogUnavailableError(f"the event log has only {fenced.identity.partitions} partitions")
            try:
                if self._is_ready(fenced, deadline) and self._append_in_time(fenced, by_partition, deadline):
                    return
            except OtherServerError:
                pass
            self._fenced = None
        raise LogUnavailableError("the event log (Redis) changes faster than an append can follow")

    def update(self, identity: LogIdentity, facts: RedisFacts) -> None:
        """Take what was just read. If the log is another one, or came back, the next append fences it."""
        former = self._former
        if former is not None and former[1].run_id == facts.run_id:
            self._former = (former[0], facts)  # a master gets another replication id when its first replica comes
        fenced = self._fenced
        if fenced is None:
            return
        if fenced.identity != identity or any(fault.loses_events for fault in identity.faults):
            self._fenced = None
            return
        fenced.facts = facts
        if identity.missing_replicas is not None:
            fenced.is_confirmed = False  # the next append is refused for certain, and not indeterminate

    def fence(self, connection: RedisConnection, identity: LogIdentity) -> None:
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

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._connection.close()

    def _is_ready(self, fenced: _Fenced, deadline: float) -> bool:
        """Whether this is still the fenced log. Raises LogUnavailableError if replicas are missing."""
        return self._confirm(fenced, min(CONFIRM_SECONDS_MAX, deadline - self._clock.monotonic()))

    def _confirm(self, fenced: _Fenced, seconds_max: float) -> bool:
        """Let the replicas confirm a write, unless they have confirmed the newest one. As ReplicaConfirmation.check."""
        if fenced.is_confirmed:
            return True
        if not self._replicas.check(self._connection, fenced.identity, fenced.facts, seconds_max):
            return False
        fenced.is_confirmed = True
        return True

    def _append_in_time(self, fenced: _Fenced, by_partition: dict[int, list[bytes]], deadline: float) -> bool:
        """Append once, and wait until the replicas have it; False if this is not the fenced log."""
        seconds_left = deadline - self._clock.monotonic()
        if seconds_left <= 0:
            raise LogUnavailableError("the event log (Redis) was ready for the append too late")
        with self._connection.connected() as wire:
            ends = self._append_on(wire, fenced, by_partition, seconds_left)
            if ends is None:
                return False
            if self._settings.log_replicas_min:
                fenced.is_confirmed = False
                self._replicas.wait(wire, fenced.facts, deadline)
                fenced.is_confirmed = True
        self._acknowledged |= ends
        return True

    def _append_on(
        self, wire: Wire, fenced: _Fenced, by_partition: dict[int, list[bytes]], seconds_max: float
    ) -> dict[int, int] | None:
        """Append once; the ends of the partitions. None: this is not the fenced log, and nothing was written."""
        identity = fenced.identity
        plan: list[str | bytes] = [*fenced.keys, identity.log_id, identity.incarnation, str(fenced.entries_max)]
        values: list[str | bytes] = []
        for partition in range(identity.partitions):
            mine = by_partition.get(partition, ())
            plan.append(str(len(mine)))
            values += mine
        try:
            answer = wire.run(self._append_script, plan + values, key_count=len(fenced.keys), seconds_max=seconds_max)
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
            raise LogFullError(f"the event log (Redis) holds its {fenced.entries_max} entries (LOG_ENTRIES_MAX)")
        if answer == b"OTHER":
            return None
        return {int(field[1:]): int(end) for field, end in zip(answer[::2], answer[1::2], strict=True)}

    def _fence_current(self) -> _Fenced:
        """Read the log's identity, its server process and the offsets that must not be reused; fence them."""
        for _ in range(ROUNDS_MAX):
            self._connection.expect(None)
            try:
                facts, identity = self._server_log.ask(self._connection)
                _refuse_to_lose(identity)
                self._connection.expect(identity.incarnation)
                if facts.has_aof:
                    self._rewrite.wait(self._connection, facts)
                self.fence(self._connection, identity)
            except OtherServerError:
                continue
            except LogUnavailableError:
                raise
            except (RecoverableError, LogMisconfiguredError) as error:
                said = about_the_log(error, "the event log (Redis) accepts no events")
                raise LogUnavailableError(said) from error
            self._note_server(identity, facts)
            self._fenced = _Fenced(
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
            return self._fenced
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


def _refuse_to_lose(identity: LogIdentity) -> None:
    """Raise LogUnavailableError if an append could make the log lose events. What it holds is drained meanwhile."""
    for fault in identity.faults:
        if fault.loses_events:
            raise LogUnavailableError(f"the event log (Redis) accepts no events: {fault.what}: {fault.remedy}")
