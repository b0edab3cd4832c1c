"""Which event log a Redis server has, and whether its set-up can lose events."""

import uuid

from redis.exceptions import RedisError

from pipeline.errors import LogMisconfiguredError
from pipeline.log.redis_connection import RedisConnection, RedisFacts
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.log.redis_replicas import missing_replicas
from pipeline.ports.log import LogIdentity, SetUpFault
from pipeline.redis_link import NO_CLUSTER
from pipeline.settings import Settings


class RedisServerLog:
    """The log that a server has; creates it on a server that has none."""

    def __init__(self, settings: Settings, keys: RedisLogKeys) -> None:
        self._settings = settings
        self._keys = keys
        self._created_log_id: str | None = None

    def is_new(self, log_id: str) -> bool:
        """Whether `ask` has created that log, and `take_new` was not called since."""
        return log_id == self._created_log_id

    def take_new(self, log_id: str) -> bool:
        """The same, for a caller that makes the new log known: from now on no log is new."""
        is_new, self._created_log_id = self.is_new(log_id), None
        return is_new

    def ask(self, connection: RedisConnection) -> tuple[RedisFacts, LogIdentity]:
        """Read the server's facts and its log id; creates the log id if it is missing.

        Raises LogUnavailableError, LogMisconfiguredError.
        """
        with connection.connected() as wire:
            try:
                facts, text = wire.ask_facts_and("GET", self._keys.log_id)
                if facts.is_cluster:
                    raise LogMisconfiguredError(f"the event log (Redis) can't be used: EVENT_LOG_URL {NO_CLUSTER}")
                if isinstance(text, RedisError):
                    raise text
                if text is None:
                    # The number of partitions is part of the id, so it can't be lost or changed separately.
                    made = f"{uuid.uuid4().hex}.{self._settings.log_partitions}"
                    if wire.call("SET", self._keys.log_id, made, "NX") is not None:
                        self._created_log_id = made
                    text = wire.call("GET", self._keys.log_id)
            except (RedisError, OSError) as error:
                raise connection.unavailable(error) from error
        log_id = (text or b"").decode(errors="replace")
        count = log_id.rpartition(".")[2]
        if not count.isdecimal() or int(count) < 1:
            raise LogMisconfiguredError(
                f"the event log (Redis) can't be used: its key {self._keys.log_id!r} is not Sluice's: {log_id!r}"
            )
        return facts, LogIdentity(
            log_id,
            facts.run_id,
            int(count),
            _set_up_faults(self._settings, facts),
            missing_replicas=missing_replicas(self._settings, facts),
            began_by=_began_by(facts),
        )


def _set_up_faults(settings: Settings, facts: RedisFacts) -> tuple[SetUpFault, ...]:
    """What an operator must change. With LOG_REPLICAS_MIN, an accepted event is on the disks of replicas."""
    faults = []
    if facts.memory_bytes_max > 0 and facts.memory_policy != "noeviction":
        faults.append(
            SetUpFault(
                "The event log's Redis evicts keys at maxmemory, unread events among them (maxmemory-policy "
                f"{facts.memory_policy}), so no event is accepted",
                "`redis-cli CONFIG SET maxmemory-policy noeviction`, and the same in its configuration file",
                loses_events=True,
            )
        )
    if not (facts.has_aof or settings.log_replicas_min):
        faults.append(
            SetUpFault(
                "The event log's Redis keeps no append-only file: accepted events that are not stored are lost "
                "when it ends",
                "`redis-cli CONFIG SET appendonly yes`, and `appendonly yes` in its configuration file",
                loses_events=False,  # not while it runs; a system may have been set up like this
            )
        )
    return tuple(faults)


def _began_by(facts: RedisFacts) -> str:
    """How the server process came to have the log, in words."""
    was_promoted = facts.former_replication_id.strip("0") != ""
    return "a replica took the place of its master" if was_promoted else "its Redis was restarted"
