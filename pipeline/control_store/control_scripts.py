"""Runs the scripts that change the control state, or read it with its clock, on the control server."""

from typing import Any, Final

from pipeline.clock import Clock, SystemClock
from pipeline.control_store.common import BY_CHARS_MAX, CALL_SECONDS_MAX, clean_text
from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.lua_script import LuaScript
from pipeline.names import KEY_BANDS, KEY_EVENTS, KEY_GENERATION, KEY_OVERRIDE, KEY_PAUSE, KEY_RATE
from pipeline.settings import Settings

_CLOCK, _CHANGES = "clock_lib", "control_lib"


class ControlScripts:
    """Runs these scripts for one adapter.

    Each run passes the time since the last one, by this process' monotonic clock. No more time can have passed since
    any process' last run, whatever the server's wall clock shows.
    """

    def __init__(self, settings: Settings, connection: ControlConnection, clock: Clock | None = None) -> None:
        self._connection = connection
        self._clock = clock or SystemClock()
        self._events_max = settings.control_events_max
        self._ran_at: float | None = None
        names = (KEY_RATE, KEY_PAUSE, KEY_GENERATION, KEY_EVENTS, KEY_OVERRIDE, KEY_BANDS)
        self.keys: Final = [connection.key(name) for name in names]

    def run(self, name: str, actor: str, *arguments: str, more_keys: tuple[str, ...] = ()) -> Any:
        """Run `name`.lua, which changes the control state, for `actor`. Raises StoreUnavailableError."""
        script, keys = load_script(name, _CLOCK, _CHANGES), [*self.keys, *more_keys]
        return self._run(script, keys, [clean_text(actor, BY_CHARS_MAX), *arguments])

    def look(self, name: str, keys: list[str], *arguments: str) -> Any:
        """Run `name`.lua, which only reads the control state: its keys are arguments. Raises StoreUnavailableError."""
        return self._run(load_script(name, _CLOCK), keys, list(arguments))

    def _run(self, script: LuaScript, keys: list[str], arguments: list[str]) -> Any:
        now = self._clock.monotonic()
        # One run may reach the server faster than the run before it did.
        elapsed_max = "" if self._ran_at is None else repr(now - self._ran_at + CALL_SECONDS_MAX)
        answer = self._connection.run(script, keys, [f"{self._events_max} {elapsed_max}", *arguments])
        self._ran_at = now
        return answer
