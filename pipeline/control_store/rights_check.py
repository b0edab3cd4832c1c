"""Finds out at the start which rights the users of REDIS_URL and EVENT_LOG_URL lack: otherwise errors come one by one.

Each process asks about itself with ACL DRYRUN, which runs nothing.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from pipeline.control_store.connection import ControlConnection
from pipeline.control_store.rights import KeySpace, RedisServer, Role, Use, commands_of, uses_of
from pipeline.errors import SettingsError, StoreUnavailableError
from pipeline.settings import Settings
from pipeline.urls import sentinel_url

_logger = logging.getLogger(__name__)

_KEY, _CHANNEL = "{key}", "{channel}"
# Arguments with which Redis accepts a command. The first word is the command, also if it has a subcommand.
_SAMPLES: Final[dict[str, str]] = {
    "ACL|DRYRUN": "ACL DRYRUN default PING",
    "ACL|WHOAMI": "ACL WHOAMI",
    "BGREWRITEAOF": "BGREWRITEAOF",
    "BRPOP": "BRPOP {key} 1",
    "CLIENT|SETINFO": "CLIENT SETINFO lib-name sluice",
    "EVAL": "EVAL return 1 {key}",
    "EVALSHA": "EVALSHA sha 1 {key}",
    "EVALSHA_RO": "EVALSHA_RO sha 1 {key}",
    "EVAL_RO": "EVAL_RO return 1 {key}",
    "HDEL": "HDEL {key} f",
    "HEXISTS": "HEXISTS {key} f",
    "HGET": "HGET {key} f",
    "HINCRBY": "HINCRBY {key} f 1",
    "HINCRBYFLOAT": "HINCRBYFLOAT {key} f 1",
    "HMGET": "HMGET {key} f",
    "HSET": "HSET {key} f v",
    "HSETNX": "HSETNX {key} f v",
    "LPUSH": "LPUSH {key} v",
    "LRANGE": "LRANGE {key} 0 0",
    "PEXPIRE": "PEXPIRE {key} 1",
    "PSUBSCRIBE": "PSUBSCRIBE {channel}",
    "PUBLISH": "PUBLISH {channel} m",
    "RPUSH": "RPUSH {key} v",
    "SADD": "SADD {key} m",
    "SCRIPT|EXISTS": "SCRIPT EXISTS sha",
    "SCRIPT|LOAD": "SCRIPT LOAD return",
    "SELECT": "SELECT 0",
    "SET": "SET {key} v",
    "SREM": "SREM {key} m",
    "WAIT": "WAIT 1 1",
    "WAITAOF": "WAITAOF 0 1 1",
    "XADD": "XADD {key} * f v",
    "XDEL": "XDEL {key} 1-1",
    "XINFO|STREAM": "XINFO STREAM {key}",
    "XREAD": "XREAD STREAMS {key} 0",
    "XREVRANGE": "XREVRANGE {key} + -",
    "XTRIM": "XTRIM {key} MAXLEN 1",
    "ZADD": "ZADD {key} 1 m",
    "ZRANGE": "ZRANGE {key} 0 1",
    "ZRANGEBYSCORE": "ZRANGEBYSCORE {key} 0 1",
    "ZREM": "ZREM {key} m",
    "ZREMRANGEBYSCORE": "ZREMRANGEBYSCORE {key} 0 1",
}
_BARE: Final = frozenset({"DISCARD", "EXEC", "INFO", "MULTI", "PING", "PUNSUBSCRIBE", "TIME", "UNWATCH"})
# Commands that only need the right to read their key.
_READ_WORDS: Final = (
    "EVALSHA_RO EVAL_RO EXISTS GET HEXISTS HGET HGETALL HKEYS HLEN HMGET HVALS LLEN LRANGE SMEMBERS WATCH XINFO|STREAM "
    "XLEN XREAD XREVRANGE ZCARD ZRANGE ZRANGEBYSCORE"
)
_READ: Final = frozenset(_READ_WORDS.split())
_ALLOWED: Final = "OK"
CHECK_SECONDS_MAX: Final = 5.0  # for some 400 questions in one round trip, which take milliseconds


def sample_of(command: str) -> str:
    """A call of a command, with {key} or {channel} in place of its key or channel."""
    return _SAMPLES.get(command) or (command if command in _BARE else f"{command} {_KEY}")


@dataclass(frozen=True, slots=True)
class Probe:
    """A call that a user may make."""

    words: list[str]
    needs: tuple[str, ...]  # the rules that allow it
    proves: tuple[str, ...]  # the rules that the user has if it may; a command that reads proves no right to write


def probes(use: Use, place: KeySpace) -> Iterator[Probe]:
    """Calls that the user of this use may make."""
    for command in commands_of(use):
        words, rule = sample_of(command).split(), f"+{command.lower()}"
        if _KEY in words:
            reads = command in _READ
            kinds = [("~", "%R~" if reads else "~", use.writes), ("%R~", "%R~", use.reads if reads else ())]
        elif _CHANNEL in words:
            kinds = [("&", "&", use.channels)]
        else:
            yield Probe(words, (rule,), (rule,))
            continue
        for needed, proved, patterns in kinds:
            for pattern in map(place.pattern, patterns):  # its * stands for itself: that name matches the pattern
                call = [pattern if word in (_KEY, _CHANNEL) else word for word in words]
                yield Probe(call, (rule, needed + pattern), (rule, proved + pattern))


def refuse_missing_rights(settings: Settings, role: str) -> None:
    """Raise SettingsError with the line to run, if the user of one of the two servers lacks rights of this role.

    A server that does not answer may be unavailable for now, and is no error. A user that may not ask is made by
    somebody else's rules. Both are logged.
    """
    missing, unasked = check_rights(settings, Role(role))
    for why in unasked:
        _logger.warning("%s", why, extra={"action": "rights_unchecked"})
    for problem in missing:
        raise SettingsError(problem)


def check_rights(settings: Settings, role: Role) -> tuple[list[str], list[str]]:
    """The rights that the users lack, and the reasons why a user could not be asked; both in words."""
    servers = [("redis_url", [RedisServer.CONTROL])]
    if settings.log_scheme == "redis":
        if _login(settings.redis_url) == _login(settings.event_log_url):
            servers = [("redis_url", list(RedisServer))]
        else:
            servers.append(("event_log_url", [RedisServer.LOG]))
    missing: list[str] = []
    unasked: list[str] = []
    for name, kinds in servers:
        place = KeySpace(settings.key_prefix, database_of(getattr(settings, name)))
        try:
            lacking = _lacking(ControlConnection(settings, name), uses_of(role, kinds), place)
        except StoreUnavailableError as error:
            unasked.append(f"the rights of the user of {name.upper()} are not checked (docs/redis-acl.md): {error}")
            continue
        if lacking:
            user, rules = lacking
            missing.append(
                f"the user {user} of {name.upper()} lacks rights of the role {role}. "
                f"As an administrator of that Redis: ACL SETUSER {user} {' '.join(rules)} (docs/redis-acl.md)"
            )
    return missing, unasked


def database_of(url: str) -> int:
    """The number of the database in a URL of Redis."""
    address = sentinel_url(url)
    if address is not None:
        return address.database
    parts = urlsplit(url)
    text = parse_qs(parts.query).get("db", [parts.path.strip("/")])[-1]
    return int(text) if text.isdigit() else 0


def _login(url: str) -> tuple[object, object, str | None]:
    """Server and user of a URL: one user needs the rights for all that it is used for."""
    address = sentinel_url(url)
    if address is not None:
        return address.sentinels, address.master, address.user
    parts = urlsplit(url)
    return parts.hostname, parts.port or 6379, parts.username


def _lacking(connection: ControlConnection, uses: list[Use], place: KeySpace) -> tuple[str, list[str]] | None:
    """The user, and the rules that it lacks; None if it lacks none. Raises StoreUnavailableError."""
    user = str(connection.call("ACL", "WHOAMI"))
    connection.call("ACL", "DRYRUN", user, "PING")  # of many questions at once, no error shows that it may not ask
    asked = [probe for use in uses for probe in probes(use, place)]
    answers = connection.call_all(
        [("ACL", "DRYRUN", user, *probe.words) for probe in asked], wait_seconds=CHECK_SECONDS_MAX
    )
    proved: set[str] = set()
    needed: dict[str, None] = {}
    for probe, answer in zip(asked, answers, strict=True):
        if answer == _ALLOWED:
            proved.update(probe.proves)
        elif not isinstance(answer, Exception):  # as for a command that this server does not have
            needed |= dict.fromkeys(probe.needs)
    lacking = [rule for rule in needed if rule not in proved]
    lacking = [rule for rule in lacking if not (rule.startswith("%R~") and rule.removeprefix("%R") in lacking)]
    return (user, lacking) if lacking else None
