"""Connections to the control server, and scripts that run on it."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from pipeline.control_store.common import CALL_SECONDS_MAX
from pipeline.errors import StoreRefusesError, StoreUnavailableError
from pipeline.lua_script import LuaScript, read_script
from pipeline.redis_link import failure_text, has_answered, make_pool
from pipeline.settings import Settings

WAIT_GRACE_SECONDS: Final = 1.0  # how late the response to a blocking read may be
CONNECTIONS_MAX: Final = 32  # of one process and adapter: one for each thread that calls at the same time


@cache
def load_script(name: str, *libraries: str) -> LuaScript:
    """The script `name`.lua of this folder; see read_script."""
    return read_script(Path(__file__).parent, name, *libraries)


def _client(settings: Settings, name: str, socket_seconds: float) -> Any:
    """A client that responds or fails within its time-outs: by default redis-py retries a call ten times.

    RESP2, because it needs no handshake and has the same response types on every server. (Any: `execute_command` is
    untyped.)
    """
    pool = make_pool(
        settings,
        name,
        socket_timeout=socket_seconds,
        socket_connect_timeout=CALL_SECONDS_MAX,
        retry=Retry(NoBackoff(), 0),
        max_connections=CONNECTIONS_MAX,
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,
    )
    return redis.Redis.from_pool(pool)


class ControlConnection:
    """One adapter's connections to the control server. Connects on first use, again in a forked child; thread-safe."""

    def __init__(self, settings: Settings, name: str = "redis_url") -> None:
        """`name`: the setting of the URL; the check of rights also connects to the other one."""
        self._settings = settings
        self._name = name
        self._prefix = settings.key_prefix
        self._pid = 0
        self._quick: Any = None
        self._waiting: tuple[float, Any] | None = None

    def key(self, *names: str) -> str:
        """A key with this system's prefix."""
        return self._prefix + ":".join(names)

    def run(self, script: LuaScript, keys: list[str], arguments: list[str]) -> Any:
        """Run a script by its hash, or by its text if the server has not cached it (any more).

        Raises StoreUnavailableError. After a time-out it is unknown whether the script has run: every script may run
        twice.
        """
        try:
            client, read_only = self._quick_client(), "_RO" if script.only_reads else ""
            try:
                return client.execute_command(f"EVALSHA{read_only}", script.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return client.execute_command(f"EVAL{read_only}", script.text, len(keys), *keys, *arguments)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def call(self, *command: str | int) -> Any:
        """Run one command. Raises StoreUnavailableError."""
        try:
            return self._quick_client().execute_command(*command)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def ask_all(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """Run commands that do not block in one round trip; a StoreRefusesError is the answer to a refused one.

        Raises StoreUnavailableError if the server does not answer all of them.
        """
        try:
            with self._quick_client().pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                found = list(pipeline.execute(raise_on_error=False))
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
        for one in found:
            if isinstance(one, Exception) and not has_answered(one):
                raise self._unavailable(one) from one
        return [self._unavailable(one) if isinstance(one, Exception) else one for one in found]

    def run_and_call(
        self, script: LuaScript, keys: list[str], arguments: list[str], command: Sequence[str | int]
    ) -> tuple[Any, Any]:
        """Run a script, then a command in the same round trip; returns both answers.

        Raises StoreUnavailableError if one of them fails.
        """
        try:
            with self._quick_client().pipeline(transaction=False) as pipeline:
                read_only = "_RO" if script.only_reads else ""
                pipeline.execute_command(f"EVALSHA{read_only}", script.sha, len(keys), *keys, *arguments)
                pipeline.execute_command(*command)
                of_script, answer = pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
        if isinstance(of_script, NoScriptError):  # it was not run
            return self.run(script, keys, arguments), self.call(*command)
        for one in (of_script, answer):
            if isinstance(one, Exception):
                raise self._unavailable(one) from one
        return of_script, answer

    def wait_and_run(
        self, command: Sequence[str | int], script: LuaScript, keys: list[str], *, wait_seconds: float
    ) -> tuple[Any, Any]:
        """Run a command that blocks, then a script without arguments, in one round trip; returns both answers.

        Redis runs the script once the command no longer blocks. The script's answer is None if the server has not
        cached it. Raises StoreUnavailableError if one of them fails.
        """
        read_only = "_RO" if script.only_reads else ""
        run: tuple[str | int, ...] = (f"EVALSHA{read_only}", script.sha, len(keys), *keys)
        waited, answer = self.call_all([command, run], wait_seconds=wait_seconds)
        if isinstance(answer, NoScriptError):
            answer = None
        for one in (waited, answer):
            if isinstance(one, Exception):
                raise self._unavailable(one) from one
        return waited, answer

    def call_all(self, commands: Sequence[Sequence[str | int]], *, wait_seconds: float) -> list[Any]:
        """Run commands in one round trip; an error of one of them is its answer. Raises StoreUnavailableError."""
        try:
            with self._waiting_client(wait_seconds).pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return list(pipeline.execute(raise_on_error=False))
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def wait(self, *command: str | int, wait_seconds: float) -> Any:
        """Run one command that blocks on the server for up to `wait_seconds`. Raises StoreUnavailableError.

        Uses separate connections, whose time-out is longer than the wait. They are recreated when the wait changes.
        """
        try:
            return self._waiting_client(wait_seconds).execute_command(*command)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def _forget_after_fork(self) -> None:
        """Drop connections after a fork: an inherited socket belongs to the parent."""
        if self._pid != os.getpid():
            self._quick, self._waiting, self._pid = None, None, os.getpid()

    def _quick_client(self) -> Any:
        self._forget_after_fork()
        client = self._quick
        if client is None:
            client = self._quick = _client(self._settings, self._name, CALL_SECONDS_MAX)
        return client

    def _waiting_client(self, wait_seconds: float) -> Any:
        self._forget_after_fork()
        waiting = self._waiting
        if waiting is None or waiting[0] != wait_seconds:
            client = _client(self._settings, self._name, wait_seconds + WAIT_GRACE_SECONDS)
            waiting = self._waiting = (wait_seconds, client)
        return waiting[1]

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        """Any error of the server: for the caller, the control store is unavailable.

        This includes refusals that look permanent (access rights, a key of another type): an operator may correct them
        at any time, and until then no process may end because of them.
        """
        kind = StoreRefusesError if has_answered(error) else StoreUnavailableError
        return kind(failure_text(error, self._settings, self._name))
