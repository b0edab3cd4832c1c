"""The replicas of the log's Redis: whether enough of them follow, and whether they have what was written."""

from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from pipeline.clock import Clock
from pipeline.errors import LogIndeterminateError, LogUnavailableError
from pipeline.log.redis_connection import OtherServerError, RedisConnection, RedisFacts, Wire
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.lua_script import read_script
from pipeline.ports.log import LogIdentity, MissingReplicas
from pipeline.redis_link import explained
from pipeline.settings import Settings

CONFIRM_SECONDS_MAX: Final = 0.5  # replicas confirm within a millisecond, or after their disk has synced
CONFIRM_GRACE_SECONDS: Final = 0.3  # how late Redis' response may be after the time that it waits for replicas
WAIT_SECONDS_MIN: Final = 0.002  # of one wait for replicas: a sync to disk takes milliseconds
WAIT_SECONDS_MAX: Final = 0.1


def missing_replicas(settings: Settings, facts: RedisFacts) -> MissingReplicas | None:
    """What an operator reads if fewer replicas than LOG_REPLICAS_MIN follow; None if there are enough."""
    wanted = settings.log_replicas_min
    if facts.replicas >= wanted:
        return None
    return MissingReplicas(
        f"Events are refused: the event log's Redis has {_answering(facts.replicas)}, and LOG_REPLICAS_MIN={wanted}",
        "the replicas of the event log's Redis: `redis-cli INFO replication` there and on its master",
        refuses_events=True,
    )


class ReplicaConfirmation:
    """Waits until LOG_REPLICAS_MIN replicas have what a connection wrote."""

    def __init__(self, settings: Settings, keys: RedisLogKeys, clock: Clock) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._confirm_script = read_script(Path(__file__).parent, "confirm")

    def wait(self, wire: Wire, facts: RedisFacts, deadline: float) -> None:
        """Wait until the replicas have the append of this connection. Raises LogIndeterminateError."""
        wanted = self._settings.log_replicas_min
        try:
            count = self.confirmations(wire, facts, max(0.0, deadline - self._clock.monotonic()))
        except (RedisError, OSError) as error:
            raise LogIndeterminateError(
                f"the event log (Redis) did not confirm that its replicas have an append: {error}"
            ) from error
        if count < wanted:
            raise LogIndeterminateError(
                f"the event log (Redis) has an append, and {_replicas(count)} confirmed it in time "
                f"(LOG_REPLICAS_MIN={wanted})"
            )

    def check(self, connection: RedisConnection, identity: LogIdentity, facts: RedisFacts, seconds_max: float) -> bool:
        """Check that the replicas confirm writes; False if this is not the fenced log.

        An append that they do not confirm would stay in the log, and its client would send it again. So this comes
        before the first append, and after one that was not confirmed. Raises LogUnavailableError, OtherServerError.
        """
        wanted = self._settings.log_replicas_min
        try:
            with connection.connected() as wire:
                arguments = [self._keys.log_id, self._keys.ends, identity.log_id, identity.incarnation]
                if wire.run(self._confirm_script, arguments, key_count=2) != b"OK":
                    return False
                count = self.confirmations(wire, facts, seconds_max)
                connected = wire.ask_facts().replicas if count < wanted else count
        except OtherServerError:
            raise
        except (RedisError, OSError) as error:
            why = explained(error, self._settings, "event_log_url")
            raise LogUnavailableError(
                f"the event log (Redis) can't be used: its replicas are unknown: {why}"
            ) from error
        if count < wanted:
            silent = ""
            if connected >= wanted:
                silent = f", which do{'es not' if connected == 1 else ' not all'} confirm what is written"
            raise LogUnavailableError(
                f"the event log (Redis) can't be used: it has {_answering(connected)}{silent}, and "
                f"LOG_REPLICAS_MIN={wanted}"
            )
        return True

    def confirmations(self, wire: Wire, facts: RedisFacts, seconds_max: float) -> int:
        """The number of replicas that have all that this connection wrote: on disk if Redis can say that.

        Redis waits for them; 0 if its own disk is too late. A connection that was opened anew has written nothing, so
        the caller writes on the same one.

        Redis asks its replicas once for each wait, and otherwise they report once a second. A replica that is asked
        while it syncs its disk answers with the state before. So several short waits are far faster than one long one.
        Each ends in time: by Redis' own timer, a wait of milliseconds would last up to a tenth of a second and more.
        """
        wanted, own = self._settings.log_replicas_min, int(facts.has_aof)
        command = ("WAITAOF", own, wanted) if facts.can_wait_for_disks else ("WAIT", wanted)
        now = self._clock.monotonic()
        deadline, wait_seconds = now + seconds_max, WAIT_SECONDS_MIN
        while True:
            left = max(0.0, deadline - now)
            wait_ms = max(1, int(min(wait_seconds, left) * 1000))  # 0: without limit
            wire.send(*command, wait_ms)
            # A server that stands still for a moment has the whole time for its response.
            grace_seconds = max(0.0, left - wait_ms / 1000) + CONFIRM_GRACE_SECONDS
            answer = wire.receive_in_time(wait_ms / 1000, grace_seconds=grace_seconds)
            synced, count = answer if facts.can_wait_for_disks else (own, answer)
            confirmed = int(count) if synced >= own else 0
            now = self._clock.monotonic()
            if confirmed >= wanted or now >= deadline:
                return confirmed
            wait_seconds = min(2 * wait_seconds, WAIT_SECONDS_MAX)


def _replicas(count: int) -> str:
    return "no replica" if count == 0 else f"{count} replica{'' if count == 1 else 's'}"


def _answering(count: int) -> str:
    return "no replica that answers" if count == 0 else _replicas(count)
