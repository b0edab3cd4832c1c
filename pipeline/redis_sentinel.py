"""Redis Sentinel: finds the master of each new connection, and says why there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

SENTINEL_SECONDS_MAX: Final = 0.2  # to connect, and for an answer: a sentinel answers within 1 ms
_UNKNOWN_MASTER: Final = "No such master"  # part of Redis' message
_UNKNOWN_COMMAND: Final = "unknown command"  # likewise


class SentinelLogin(UsernamePasswordCredentialProvider):
    """User and password of sentinels. Celery shows its transport options (`inspect stats`), but not these."""

    def __json__(self) -> str:
        """The form in which kombu serializes it."""
        return "***"


class Sentinels(Sentinel):
    """redis-py's client of sentinels. Unlike that, it may be used by several threads, and says why there is no master.

    It trusts the first sentinel that reports an available master. So a sentinel that was cut off may name a master that
    others have replaced. LOG_REPLICAS_MIN protects from this: replicas must then confirm each write.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], options: Mapping[str, Any]) -> None:
        """`options`: arguments of the connections to the sentinels."""
        # By default redis-py repeats a call ten times, and sends two commands that a user needs rights for.
        super().__init__(  # type: ignore[no-untyped-call]
            addresses,
            sentinel_kwargs={**options, "retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None},
        )
        self._addresses = tuple(addresses)
        self._newest = 0  # the place of the sentinel that answered last: others may be unavailable

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the master. Raises MasterNotFoundError, with an error of a sentinel as its cause."""
        problems, cause, count = [], None, len(self.sentinels)
        first = self._newest
        for place in (number % count for number in range(first, first + count)):
            try:
                state: Any = self.sentinels[place].sentinel_master(service_name)
            except (RedisError, OSError) as error:
                problem, cause = _problem(error, service_name), error
            else:
                if self.check_master_state(state, service_name):  # type: ignore[no-untyped-call]
                    self._newest = place
                    return str(state["ip"]), int(state["port"])
                problem = "holds the master for unavailable, and no replica has taken its place yet"
            problems.append("{}:{} {}".format(*self._addresses[place], problem))
        raise MasterNotFoundError(
            f"no sentinel names a master {service_name!r} that is available: {'; '.join(problems)}"
        ) from cause


class MasterConnection(SentinelManagedConnection):
    """A connection to the master, which reads answers as one without sentinels does.

    redis-py's own turns the answer of a master that has become a replica into the error of a lost connection: an append
    would not know that nothing was written. It also stays open after a time-out: the next command would take the late
    answer for its own.
    """

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """An answer. After an error of the connection, and that of a former master, the connection is closed."""
        try:
            return super(SentinelManagedConnection, self).read_response(*arguments, **options)
        except ReadOnlyError:
            self.disconnect()  # type: ignore[no-untyped-call]  # the next one asks the sentinels for the master
            raise


class MasterTlsConnection(MasterConnection, SentinelManagedSSLConnection):
    """The same with TLS."""


def sentinel_pool(
    master: str, addresses: Sequence[tuple[str, int]], sentinel_options: Mapping[str, Any], **options: Any
) -> SentinelConnectionPool:
    """Connections to the master that the sentinels name; `options` are arguments of these connections.

    Kombu brings a class of connections of its own: it knows only lost connections as a reason to connect again.
    """
    of_own = MasterTlsConnection if options.pop("ssl", False) else MasterConnection
    options.setdefault("connection_class", of_own)
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        master, Sentinels(addresses, sentinel_options), **options
    )


def _problem(error: Exception, master: str) -> str:
    if isinstance(error, AuthenticationError):
        return f"refuses REDIS_SENTINEL_USER or REDIS_SENTINEL_PASSWORD ({error})"
    if isinstance(error, NoPermissionError):
        return f"refuses the question: its user needs the right +sentinel|master ({error})"
    if isinstance(error, ResponseError) and _UNKNOWN_MASTER in str(error):
        return f"has no master with the name {master!r}"
    if isinstance(error, ResponseError) and _UNKNOWN_COMMAND in str(error):
        return "is no sentinel"
    return f"does not answer ({error})"
