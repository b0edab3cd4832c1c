"""One connection to the log's Redis. It knows the server process at the other end."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from pipeline.errors import LogUnavailableError
from pipeline.lua_script import LuaScript
from pipeline.redis_link import explained, failure_text, has_answered, make_pool
from pipeline.settings import Settings

_REPLICA: Final = re.compile(rb"slave\d+")  # INFO's name of a replica, and of its line
_WAITAOF_SINCE: Final = (7, 2)
CONNECT_SECONDS_MAX: Final = 0.2  # a running Redis accepts and sends its facts within 0.2 ms
REPLICA_LAG_SECONDS_MAX: Final = 5  # a replica reports to its master once a second
_ASK_FACTS: Final = ("INFO", "server", "memory", "persistence", "replication")
_WAKE_AFTER_SECONDS: Final = 0.005  # later than a time-out, which Redis counts from when it has read the command
SOCKET_READ_BYTES: Final = 1 << 18  # a batch of 2,000 records is half a megabyte


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """The facts that a Redis server process reports."""

    run_id: str  # changes with each start
    memory_bytes_max: int  # 0: no limit
    memory_policy: str
    has_aof: bool
    is_rewriting: bool  # the append-only file, now or scheduled
    has_rewritten: bool  # since its start; the latest completed rewrite succeeded
    is_cluster: bool
    replicas: int  # that are connected and have reported in the last seconds
    can_wait_for_disks: bool  # Redis ≥ 7.2: WAITAOF
    # Changes when a replica becomes master; that one reports the id of its former master too.
    replication_id: str
    former_replication_id: str


class OtherServerError(RedisError):
    """The server process is not the expected one: Redis was restarted."""


class RedisConnection:
    """A connection that reconnects after a failure, and never repeats a command.

    Each new connection first reads the server's `run_id`. A connection cannot outlive its server process, so no later
    command needs to check again. While `expected_run_id` is set, a connection to any other process is refused with
    OtherServerError. Not for use by several threads at once.

    `redis.Redis` itself is not used. It raises the same error for a failed connection and for a lost response, and an
    append must distinguish these.
    """

    def __init__(self, settings: Settings, *, answer_seconds_max: float) -> None:
        self._settings = settings
        self._answer_seconds_max = answer_seconds_max
        self._expected_run_id: str | None = None
        self._facts: RedisFacts | None = None
        self._pool = make_pool(
            settings,
            "event_log_url",
            socket_timeout=answer_seconds_max,
            socket_connect_timeout=CONNECT_SECONDS_MAX,
            socket_read_size=SOCKET_READ_BYTES,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # needs no handshake, and has the same response types on every server
            driver_info=None,  # would cost two more round trips in each new connection
            redis_connect_func=self._introduce,
        )

    @property
    def facts(self) -> RedisFacts:
        """The facts of the server of the latest connection."""
        if self._facts is None:
            raise LogUnavailableError("the event log (Redis) was not reached yet")
        return self._facts

    def expect(self, run_id: str | None) -> None:
        """Refuse connections to any other server process; None: accept any."""
        if run_id is not None and self._facts is not None and self._facts.run_id != run_id:
            self._pool.disconnect()
        self._expected_run_id = run_id

    @contextlib.contextmanager
    def connected(self) -> Iterator["Wire"]:
        """A live connection to the expected server.

        On entry raises LogUnavailableError if there is none, and OtherServerError. Errors inside are those of redis-py.
        """
        try:
            connection = self._pool.get_connection()
        except OtherServerError:
            raise
        except (RedisError, OSError) as error:
            why = explained(error, self._settings, "event_log_url")
            what = "refuses" if has_answered(error) else "can't be reached at EVENT_LOG_URL"
            what = what if why == str(error) else "can't be used"
            raise LogUnavailableError(f"the event log (Redis) {what}: {why}") from error
        try:
            yield Wire(connection, self._answer_seconds_max)
        finally:
            self._pool.release(connection)

    def ask_facts(self) -> RedisFacts:
        """The server's current facts. Raises LogUnavailableError, OtherServerError."""
        with self.connected() as wire:
            try:
                return wire.ask_facts()
            except (RedisError, OSError) as error:
                raise self.unavailable(error) from error

    def call(self, *command: str | bytes | int) -> Any:
        """Run one command that has no partial result. Raises LogUnavailableError, OtherServerError."""
        with self.connected() as wire:
            try:
                return wire.call(*command)
            except (RedisError, OSError) as error:
                raise self.unavailable(error) from error

    def run(self, script: LuaScript, keys: list[str], arguments: list[str]) -> Any:
        """Run a script that has no partial result. Raises LogUnavailableError, OtherServerError."""
        with self.connected() as wire:
            try:
                return wire.run(script, [*keys, *arguments], key_count=len(keys))
            except (RedisError, OSError) as error:
                raise self.unavailable(error) from error

    def unavailable(self, error: Exception) -> LogUnavailableError:
        """What a call raises that has failed and wrote nothing: an error that the server has sent is no silence."""
        return LogUnavailableError(failure_text(error, self._settings, "event_log_url"))

    def close(self) -> None:
        """Disconnect; idempotent. A later call connects again."""
        self._pool.disconnect()

    def _introduce(self, connection: Any) -> None:
        """Complete a new connection (redis-py calls this): read the server's facts, and check its `run_id`."""
        connection.on_connect()
        connection.send_command(*_ASK_FACTS)
        facts = parse_facts(connection.read_response(timeout=CONNECT_SECONDS_MAX))
        self._facts = facts
        if self._expected_run_id not in (None, facts.run_id):
            raise OtherServerError(f"Redis was restarted: its run_id is {facts.run_id}")


class Wire:
    """Commands on one live connection."""

    def __init__(self, connection: Any, answer_seconds_max: float) -> None:
        self._connection = connection
        self._answer_seconds_max = answer_seconds_max

    def send(self, *command: str | bytes | int) -> None:
        """Send a command without waiting for its response."""
        self._connection.send_command(*command)

    def send_all(self, *commands: Sequence[str | bytes | int]) -> None:
        """Send commands at once: Redis then reads all of them when it wakes up for the first."""
        self._connection.send_packed_command(self._connection.pack_commands(commands))

    def receive(self, *, seconds_max: float | None = None) -> Any:
        """The next response, as hiredis returns it (bytes, int, list). After a time-out the connection is closed.

        It is closed too if the server has become a replica, and still runs: a new connection may reach its new master.
        """
        try:
            return self._connection.read_response(timeout=seconds_max or self._answer_seconds_max)
        except ReadOnlyError:
            self._connection.disconnect()
            raise

    def has_response(self, seconds_max: float) -> bool:
        """Wait until a response begins to come; False if none did in time, and the connection stays open."""
        return bool(self._connection.can_read(timeout=seconds_max))

    def receive_in_time(self, wait_seconds: float, *, grace_seconds: float) -> Any:
        """The response to a command that was sent, and that Redis lets wait for at most `wait_seconds`.

        Redis looks at the time-outs of blocked commands when it wakes up: by its timer, or for any command. So a
        command follows if there is no response by then. The response may be late by `grace_seconds`.
        """
        if self.has_response(wait_seconds + _WAKE_AFTER_SECONDS):
            return self.receive(seconds_max=grace_seconds)
        try:
            self.send("PING")  # it wakes Redis up, which then ends the wait and answers both
            response = self.receive(seconds_max=grace_seconds)
            self.receive()
        except BaseException:
            self._connection.disconnect()  # a response may still arrive
            raise
        return response

    def call(self, *command: str | bytes | int, seconds_max: float | None = None) -> Any:
        """Send a command and return its response."""
        self.send(*command)
        return self.receive(seconds_max=seconds_max)

    def ask_facts(self) -> RedisFacts:
        """The server's current facts. The connection to a replica is closed; see `receive`."""
        try:
            return parse_facts(self.call(*_ASK_FACTS))
        except ReadOnlyError:
            self._connection.disconnect()
            raise

    def ask_facts_and(self, *command: str | bytes | int) -> tuple[RedisFacts, Any]:
        """`ask_facts`, and the response of a command in the same round trip: an error that Redis sends is one too."""
        self.send_all(_ASK_FACTS, command)
        try:
            info = self.receive()
        except BaseException:
            self._connection.disconnect()  # the other response may still arrive
            raise
        try:
            answer: Any = self.receive()
        except ResponseError as error:
            answer = error
        try:
            return parse_facts(info), answer
        except ReadOnlyError:
            self._connection.disconnect()
            raise

    def run(
        self,
        script: LuaScript,
        arguments: list[str | bytes] | list[str],
        *,
        key_count: int,
        seconds_max: float | None = None,
    ) -> Any:
        """Run a script by its hash. If the server does not know it, it has done nothing yet: then send the text."""
        read_only = "_RO" if script.only_reads else ""
        try:
            return self.call(f"EVALSHA{read_only}", script.sha, key_count, *arguments, seconds_max=seconds_max)
        except NoScriptError:
            return self.call(f"EVAL{read_only}", script.text, key_count, *arguments, seconds_max=seconds_max)


def parse_facts(info: bytes) -> RedisFacts:
    """Parse the response to `INFO server memory persistence replication`. Raises ReadOnlyError if it is a replica's."""
    fields = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    if fields.get(b"loading") == b"1":
        raise BusyLoadingError("Redis is still loading its data")
    if fields[b"role"] == b"slave":
        raise ReadOnlyError("this server is a replica, and only its master takes events")
    is_rewriting = b"1" in (fields[b"aof_rewrite_in_progress"], fields[b"aof_rewrite_scheduled"])
    has_tried = fields[b"aof_last_rewrite_time_sec"] != b"-1"  # its value from a start until the first rewrite ends
    return RedisFacts(
        run_id=fields[b"run_id"].decode(),
        memory_bytes_max=int(fields[b"maxmemory"]),
        memory_policy=fields[b"maxmemory_policy"].decode(),
        has_aof=fields[b"aof_enabled"] == b"1",
        is_rewriting=is_rewriting,
        has_rewritten=has_tried and fields[b"aof_last_bgrewrite_status"] == b"ok",
        is_cluster=fields.get(b"redis_mode") == b"cluster",
        replicas=sum(_is_well(value) for name, value in fields.items() if _REPLICA.fullmatch(name)),
        can_wait_for_disks=_version(fields[b"redis_version"]) >= _WAITAOF_SINCE,
        replication_id=fields[b"master_replid"].decode(),
        former_replication_id=fields[b"master_replid2"].decode(),
    )


def _is_well(replica: bytes) -> bool:
    """Whether a line of INFO such as `ip=…,port=6379,state=online,offset=1,lag=0` is of a replica that follows."""
    facts = dict(part.split(b"=", 1) for part in replica.split(b",") if b"=" in part)
    lag = facts.get(b"lag", b"")
    return facts.get(b"state") == b"online" and lag.isdigit() and int(lag) <= REPLICA_LAG_SECONDS_MAX


def _version(text: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(b".")[:2] if part.isdigit())
