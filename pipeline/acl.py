"""The command `acl`: rules of Redis' users, from the table of their rights; the check of a user; docs/redis-acl.md."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pipeline.control_store.rights import (
    ALL,
    FOR,
    USES,
    KeySpace,
    RedisServer,
    Role,
    Use,
    commands_of,
    rules,
)
from pipeline.control_store.rights_check import database_of
from pipeline.errors import SettingsError
from pipeline.settings import Settings, read_secret

USERS: Final = "sluice-"  # before the role
SERVERS: Final[dict[str, tuple[RedisServer, ...]]] = {
    "control": (RedisServer.CONTROL,),
    "log": (RedisServer.LOG,),
    "both": tuple(RedisServer),
}


def place_of(settings: Settings, servers: Sequence[RedisServer]) -> KeySpace:
    """What the patterns begin with. Raises SettingsError."""
    url = settings.redis_url if RedisServer.CONTROL in servers else settings.event_log_url
    if RedisServer.LOG in servers and settings.log_scheme != "redis":
        raise SettingsError("EVENT_LOG_URL is no Redis: docs/links.md has the rights for Kafka")
    place = KeySpace(settings.key_prefix, database_of(url))
    if place.problem is not None:
        raise SettingsError(f"{place.problem}: {settings.key_prefix!r}")
    return place


def user_lines(
    settings: Settings, server: str, roles: Sequence[Role], *, passwords: Path | None, is_file: bool
) -> Iterator[str]:
    """A line for each user: a command for redis-cli, or a line of an aclfile. Raises SettingsError.

    Without passwords, those of existing users stay, and new users can't log in. Only hashes of passwords are shown.
    """
    servers = SERVERS[server]
    place = place_of(settings, servers)
    if is_file and passwords is None:
        raise SettingsError("an aclfile needs the users' passwords: --passwords FOLDER")
    for role in roles:
        user, words = f"{USERS}{role.value}", []
        if passwords is not None:
            password = read_secret(str(passwords / user))
            words = ["on", "resetpass", f"#{hashlib.sha256(password.encode()).hexdigest()}"]
        yield " ".join([*(("user",) if is_file else ("ACL", "SETUSER")), user, *words, *rules(role, servers, place)])


# --- docs/redis-acl.md --------------------------------------------------------------------------------------------

_PREFIX: Final = "sluice:"
_HEAD: Final = """\
# Users of Redis

Made by `python -m pipeline acl page` from `pipeline/control_store/rights.py`; do not edit it.

With one user for everything, whoever has the password of any process can pause, resume and set rates. With a user for
each role, only operators and workers can:

| role | user | who connects with it | can | can't |
|---|---|---|---|---|
"""
_CAN: Final = {
    Role.INGEST: (
        "append events, take tokens, read the control state, the hashes of API keys and the page's data",
        "pause, resume, set rates or limits, send tasks or remote commands, make or revoke API keys",
    ),
    Role.WORKER: (
        "all that the control loop and the drains do; make and revoke API keys",
        "append events (on a log server of its own); flush, configure or shut down Redis",
    ),
    Role.OPERATOR: (
        "send remote commands, which a worker carries out and records; read the state, the control events and the "
        "page's data",
        "change the control state itself, send tasks, read API keys, change events of the log",
    ),
}
_STEPS: Final = """
No user can run FLUSHALL, CONFIG, KEYS, SCAN, DEBUG, MONITOR, SHUTDOWN or change users.

Redis can't forbid the following:

- A user that may append to a stream may also shorten it (`XADD` with `MAXLEN`). A user that may look up a stream's
  ends may also read it (`XINFO STREAM` with `FULL`). So ingest's user can read and delete events that are not stored
  yet, and an operator's user can read them.
- Each user can block its server with an endless script. Each user that may write can fill the server's memory.
- If one server is both, a user has its commands of both for its keys of both. For example, ingest's user can then read
  events with `XREAD`. Two servers separate better.

## Set them up

1. Put a password of your choice into a file for each user, for example `/run/secrets/redis/sluice-ingest`:

   ```
   umask 077; mkdir -p /run/secrets/redis
   for role in ingest worker operator; do openssl rand -hex 32 > /run/secrets/redis/sluice-$role; done
   ```

2. Give both servers their users. The output has hashes of the passwords, not the passwords. `redis-cli` reads the
   administrator's password from `REDISCLI_AUTH`; an option with it would be in the list of processes:

   ```
   python -m pipeline acl control --passwords /run/secrets/redis | redis-cli -h "$CONTROL_HOST" --user admin
   python -m pipeline acl log --passwords /run/secrets/redis | redis-cli -h "$LOG_HOST" --user admin
   ```

   Then `ACL SAVE` (with an aclfile) or `CONFIG REWRITE`, otherwise Redis forgets them at its next start. With
   `--aclfile` the command prints lines for an aclfile instead. If one server is both, use `acl both`. The command reads
   KEY_PREFIX, REDIS_URL and EVENT_LOG_URL, as every process does.
   Redis before 7.2 has neither WAITAOF nor CLIENT SETINFO: leave `+waitaof` and `+client|setinfo` out.

   A second system on the same server, with another KEY_PREFIX, needs users of its own. With the same names, the first
   system would lose its rights. Put `sed 's/ sluice-/ shop-/'` between the two commands. The prefix of one system must
   not begin with that of the other.
3. Give each process the URLs with its user: `REDIS_URL=redis://sluice-ingest:…@host:6379/0`, or `REDIS_URL_FILE`. All
   processes of a kind have the same settings otherwise.
4. When all run with them, switch the user `default` off: `ACL SETUSER default off`. Keep an administrator.

At its start each process asks Redis about its own user (`ACL DRYRUN`, which runs nothing). If a right is missing, it
ends and names the line to run. A user that may not ask is not checked, nor is a server that does not answer; the
process says so in its log. `python -m pipeline acl check ROLE` does the same check for the URLs of a shell.

After an update of Sluice, run the command again before the processes start. Without `--passwords` it leaves the
passwords as they are.

`ACL LOG` of Redis shows what was denied, and to whom.

## Rules

For `KEY_PREFIX=sluice:` and database 0. `%R~` is the right to read keys, `~` to read and write them, `&` is for
channels.
"""


def page() -> str:
    """The text of docs/redis-acl.md."""
    place = KeySpace(_PREFIX)
    lines = [_HEAD.rstrip("\n")]
    for role in ALL:
        can, not_can = _CAN[role]
        lines.append(f"| {role.value} | `{USERS}{role.value}` | {FOR[role]} | {can} | {not_can} |")
    lines.append(_STEPS.rstrip("\n"))
    for name, servers in list(SERVERS.items())[:2]:
        lines += ["", f"### {'REDIS_URL' if name == 'control' else 'EVENT_LOG_URL'}", ""]
        for role in ALL:
            lines += [f"{USERS}{role.value}:", "", "```", *_wrapped(list(rules(role, servers, place))), "```", ""]
        lines += ["| what for | roles | keys | commands |", "|---|---|---|---|"]
        lines += [_row(use) for use in USES if use.server in servers]
    return "\n".join(lines) + "\n"


def _row(use: Use) -> str:
    keys = [*(f"`{key}`" for key in use.writes), *(f"`{key}` (read)" for key in use.reads)]
    keys += [f"channel `{channel}`" for channel in use.channels]
    commands = ", ".join(f"`{command.replace('|', ' ')}`" for command in commands_of(use))
    return f"| {use.what} | {', '.join(role.value for role in use.roles)} | {', '.join(keys)} | {commands} |"


def _wrapped(words: list[str], width: int = 110) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) + 1 > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line
