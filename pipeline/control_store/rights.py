"""The rights of Sluice's users in Redis: a user for each role, with the fewest rights with which everything works.

This table is the only source. `python -m pipeline acl` prints the users' rules from it, docs/redis-acl.md is made from
it, and each process checks its own user with it at the start. What a script does is read from the script itself.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pipeline import names
from pipeline.names import Queue


class Role(StrEnum):
    """Who connects to Redis."""

    INGEST = "ingest"  # `python -m ingest`
    WORKER = "worker"  # Celery's workers and Beat
    OPERATOR = "operator"  # `celery … control` and `inspect`, `python -m pipeline status`, Flower


class RedisServer(StrEnum):
    """The two servers."""

    CONTROL = "control"  # REDIS_URL
    LOG = "log"  # EVENT_LOG_URL


ALL: Final = tuple(Role)
INGEST, WORKER, OPERATOR = ALL
FOR: Final = {
    INGEST: "`python -m ingest`",
    WORKER: "Celery's workers, Beat, and `python -m tasks.keys`",
    OPERATOR: "`celery … control` and `inspect`, `python -m pipeline status`, Flower",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of a server. Keys and channels are patterns without KEY_PREFIX; {db} is the database's number."""

    server: RedisServer
    roles: tuple[Role, ...]
    what: str
    commands: str = ""  # with spaces between; a subcommand after |
    scripts: tuple[str, ...] = ()  # files beside this one, or in pipeline/log; a library is named with its scripts
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()  # these are read too
    channels: tuple[str, ...] = ()


def _control(roles: Iterable[Role], what: str, commands: str = "", **rest: tuple[str, ...]) -> Use:
    return Use(server=RedisServer.CONTROL, roles=tuple(roles), what=what, commands=commands, **rest)


def _log(roles: Iterable[Role], what: str, commands: str = "", **rest: tuple[str, ...]) -> Use:
    return Use(server=RedisServer.LOG, roles=tuple(roles), what=what, commands=commands, **rest)


_STATE: Final = (
    names.KEY_RATE, names.KEY_PAUSE, names.KEY_GENERATION, f"{names.KEY_LEASE}:{names.LEASE_PROBE}",
    names.KEY_OVERRIDE, names.KEY_BANDS, names.KEY_BUCKET, names.KEY_ACCOUNTS,
)  # fmt: skip
_CONNECT: Final = "PING SELECT CLIENT|SETINFO INFO ACL|WHOAMI ACL|DRYRUN"
_BINDINGS: Final = ("_kombu.binding.{0}", "_kombu.binding_permanent.{0}", "_kombu.binding_deadlines")
_PIDBOX, _REPLIES, _EVENTS = "celery.pidbox", "reply.celery.pidbox", "celeryev"


def _bindings(*exchanges: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(pattern.format(exchange) for exchange in exchanges for pattern in _BINDINGS))


_EXCHANGES: Final = (*(queue.value for queue in Queue), _PIDBOX, _REPLIES, _EVENTS)
# Celery adds a separator and the priority to a queue's name.
_QUEUES: Final = tuple(f"{queue.value}*" for queue in Queue)
# What kombu runs for a message's queues and bindings; the scripts are its own.
_KOMBU: Final = (
    "MULTI EXEC DISCARD EVALSHA SCRIPT|LOAD SCRIPT|EXISTS SADD SREM SMEMBERS ZADD ZREM ZRANGEBYSCORE EXISTS DEL TIME "
    "PEXPIRE"
)
_TO_WORKERS: Final = f"/{{db}}.{_PIDBOX}"
_FROM_WORKERS: Final = (f"/{{db}}.{_EVENTS}/*", f"/{{db}}.{_EVENTS}")

USES: Final[tuple[Use, ...]] = (
    # --- REDIS_URL -------------------------------------------------------------------------------------------------
    _control(ALL, "each connection; the check at the start", _CONNECT),
    _control(ALL, "the control state", scripts=("state lease_lib", "pause_state lease_lib"), reads=_STATE),
    _control([INGEST, WORKER], "the version of the API keys, with the control state", "HGET", reads=(names.KEY_KEYS,)),
    _control(ALL, "the latest control events", "XREVRANGE XREAD", reads=(names.KEY_EVENTS,)),
    _control(
        [INGEST], "the token bucket; it reads the rate, and can't change it", scripts=("bucket clock_lib",),
        reads=(names.KEY_RATE, names.KEY_PAUSE, names.KEY_OVERRIDE), writes=(names.KEY_BUCKET, names.KEY_PROCESSES),
    ),
    _control(
        [WORKER], "rate, pauses, overrides, thresholds, limits of accounts, control events", "HKEYS",
        scripts=tuple(
            f"{name} clock_lib control_lib"
            for name in (
                "publish_rate", "set_override", "clear_override", "set_bands", "clear_bands", "set_account_limit",
                "clear_account_limit", "restore_account_limits", "pause", "resume", "restore", "record_event",
            )
        ),
        writes=(
            names.KEY_RATE, names.KEY_PAUSE, names.KEY_GENERATION, names.KEY_EVENTS, names.KEY_OVERRIDE,
            names.KEY_BANDS, names.KEY_ACCOUNTS,
        ),
    ),
    _control(
        [INGEST, WORKER], "counters of all processes", scripts=("add_counts",),
        writes=(names.KEY_COUNTERS, f"{names.KEY_COUNTERS_SENDER}:*"),
    ),
    _control([WORKER], "the metrics of the whole system", "HGETALL HMGET TIME",
             reads=(names.KEY_COUNTERS, names.KEY_BUCKET)),
    _control([WORKER], "facts about PostgreSQL", "SET GET", writes=(names.KEY_FACTS,)),
    _control(
        [WORKER], "leases of ticks, probes and hints", scripts=("take_leases lease_lib", "give_back_lease"),
        writes=(f"{names.KEY_LEASE}:*",),
    ),
    _control(
        [INGEST], "the data of the live page's charts", scripts=("history",),
        writes=(names.KEY_HISTORY_TOTALS, names.KEY_HISTORY),
    ),
    _control(ALL, "the same, for reading", "XREVRANGE", reads=(names.KEY_HISTORY,)),
    _control(
        [INGEST], "whether tasks wait for the control worker, while the controller is silent", "LLEN",
        reads=(Queue.CONTROL.value,),
    ),
    _control(
        [INGEST, WORKER], "problems of processes",
        scripts=("report_troubles",), writes=(names.KEY_TROUBLES, names.KEY_TROUBLES_AT),
    ),
    _control([WORKER], "the same, for reading", "HGETALL", reads=(names.KEY_TROUBLES,)),
    _control([INGEST], "what accounts offer", scripts=("report_offers",), writes=(names.KEY_OFFERS,)),
    _control([WORKER], "the same, for reading", scripts=("read_offers",), reads=(names.KEY_OFFERS,)),
    _control([INGEST], "what was refused to accounts", scripts=("report_throttle",), writes=(names.KEY_THROTTLE,)),
    _control(ALL, "the same, for reading", scripts=("read_throttle",), reads=(names.KEY_THROTTLE,)),
    _control(
        [INGEST], "the mirror of the stored offsets: an older process of the log is fenced off",
        scripts=("mirror lowest_offsets_lib",), writes=(f"{names.KEY_LOWEST_OFFSETS}:*",),
    ),
    _control(
        [WORKER], "the mirror of the stored offsets",
        scripts=(
            "mirror lowest_offsets_lib", "seed_lowest_offsets lowest_offsets_lib",
            "raise_lowest_offset lowest_offsets_lib", "lower_lowest_offset",
        ),
        writes=(f"{names.KEY_LOWEST_OFFSETS}:*",),
    ),
    _control([INGEST], "the hashes of the API keys", "HGETALL", reads=(names.KEY_KEYS,)),
    _control(
        [WORKER], "the mirror of the API keys", "HGETALL", scripts=("replace_keys", "revoke_keys"),
        writes=(names.KEY_KEYS,),
    ),
    _control([WORKER], "the progress of the drains", scripts=("progress",), writes=(f"{names.KEY_PROGRESS}:*",)),
    # Celery
    _control(
        [WORKER], "Celery's queues", f"{_KOMBU} LPUSH RPUSH RPOP BRPOP LLEN LRANGE",
        writes=(*_QUEUES, *_bindings(*_EXCHANGES)),
    ),
    _control(
        [WORKER], "messages that Celery has taken",
        "MULTI EXEC DISCARD WATCH UNWATCH ZADD ZREM ZRANGE HSET HGET HDEL SET GET DEL EVALSHA SCRIPT|LOAD",
        writes=("unacked", "unacked_index", "unacked_mutex"),
    ),
    _control(
        [WORKER], "Celery's remote commands, and the events for Flower", "PSUBSCRIBE PUNSUBSCRIBE PUBLISH LPUSH",
        writes=(f"*.{_PIDBOX}*",), channels=(_TO_WORKERS, *_FROM_WORKERS),
    ),
    _control(
        [OPERATOR], "Celery's remote commands: pause, resume, set a rate, ask", f"{_KOMBU} PUBLISH BRPOP RPOP LLEN",
        writes=(f"*.{_REPLIES}*", *_bindings(_PIDBOX, _REPLIES)), channels=(_TO_WORKERS,),
    ),
    _control(
        [OPERATOR], "Flower: events of workers, lengths of queues", "PSUBSCRIBE PUNSUBSCRIBE LLEN",
        reads=_QUEUES, writes=(f"{_EVENTS}*", *_bindings(_EVENTS)), channels=_FROM_WORKERS,
    ),
    # --- EVENT_LOG_URL ---------------------------------------------------------------------------------------------
    _log(ALL, "each connection; the check at the start", _CONNECT),
    _log([INGEST, WORKER], "the log's identity; the first process makes it", "GET SET", writes=(names.KEY_LOG_ID,)),
    _log([OPERATOR], "the log's identity", "GET", reads=(names.KEY_LOG_ID,)),
    _log(
        [INGEST], "appends", "BGREWRITEAOF WAIT WAITAOF", scripts=("append", "confirm", "raise"),
        writes=(names.KEY_LOG_ID, names.KEY_LOG_ENDS, f"{names.KEY_LOG_STREAM}:*"),
    ),
    _log([WORKER], "a new log's lowest offsets", scripts=("raise",),
         writes=(names.KEY_LOG_ID, names.KEY_LOG_ENDS, f"{names.KEY_LOG_STREAM}:*")),
    _log([WORKER], "reads events", "XREAD", reads=(f"{names.KEY_LOG_STREAM}:*",)),
    _log(
        [WORKER], "commits, and drops what is stored", scripts=("commit",),
        writes=(names.KEY_LOG_ID, f"{names.KEY_LOG_STREAM}:*", names.KEY_LOG_COMMITTED),
    ),
    _log(
        ALL, "begin, end and commit of each partition", scripts=("positions",),
        reads=(names.KEY_LOG_ID, names.KEY_LOG_COMMITTED, names.KEY_LOG_ENDS, f"{names.KEY_LOG_STREAM}:*"),
    ),
)  # fmt: skip

_HERE: Final = Path(__file__).parent
_FOLDERS: Final = {RedisServer.CONTROL: _HERE, RedisServer.LOG: _HERE.parent / "log"}
_CALLED: Final = re.compile(r"redis\.p?call\('([A-Z]+)'(?:, '(STREAM)')?")
_PREFIX_PROBLEM: Final = re.compile(r"[][*?\\\s\"']")


def commands_of(use: Use) -> list[str]:
    """The commands of a use, with those of its scripts and those that run them."""
    found = use.commands.split()
    for script in use.scripts:
        texts = [(_FOLDERS[use.server] / f"{name}.lua").read_text(encoding="utf-8") for name in script.split()]
        read_only = "_RO" if "no-writes" in texts[0].split("\n", 1)[0] else ""
        found += [f"EVALSHA{read_only}", f"EVAL{read_only}"]
        found += ["|".join(filter(None, match)) for text in texts for match in _CALLED.findall(text)]
    return list(dict.fromkeys(found))


def uses_of(role: Role, servers: Sequence[RedisServer]) -> list[Use]:
    """The uses of a role on a server, or on a server that is both."""
    return [use for use in USES if role in use.roles and use.server in servers]


@dataclass(frozen=True, slots=True)
class KeySpace:
    """What the patterns of a system begin with."""

    prefix: str
    database: int = 0

    def pattern(self, pattern: str) -> str:
        """A pattern of keys or channels, with the prefix."""
        return self.prefix + pattern.replace("{db}", str(self.database))

    @property
    def problem(self) -> str | None:
        """Why there can be no patterns with this prefix."""
        if _PREFIX_PROBLEM.search(self.prefix):
            return "KEY_PREFIX has a character with a meaning in Redis' patterns"
        return None


def tokens(uses: Iterable[Use], place: KeySpace) -> list[str]:
    """The rules of ACL SETUSER for these uses: keys, channels, commands, each sorted."""
    uses = list(uses)
    written = {place.pattern(key) for use in uses for key in use.writes}
    read = {place.pattern(key) for use in uses for key in use.reads} - written
    channels = {place.pattern(channel) for use in uses for channel in use.channels}
    commands = {command.lower() for use in uses for command in commands_of(use)}
    return [
        *(f"~{key}" for key in sorted(written)),
        *(f"%R~{key}" for key in sorted(read)),
        *(f"&{channel}" for channel in sorted(channels)),
        *(f"+{command}" for command in sorted(commands)),
    ]


def rules(role: Role, servers: Sequence[RedisServer], place: KeySpace) -> Iterator[str]:
    """All rules of a role's user, after those of its password."""
    yield from ("clearselectors", "resetkeys", "resetchannels", "-@all")
    yield from tokens(uses_of(role, servers), place)
