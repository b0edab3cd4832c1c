"""Runs the scripts that begin with control_lib.lua, on the control server."""

from typing import Any, Final

from pipeline.clock import Clock, SystemClock
from pipeline.names import KEY_BANDS, KEY_EVENTS, KEY_GENERATION, KEY_OVERRIDE, KEY_PAUSE, KEY_RATE
from pipeline.settings import Settings
from pipeline.store.common import BY_CHARS_MAX, CALL_SECONDS_MAX, clean_text
from pipeline.store.connection import ControlConnection, load_script

LIBRARY: Final = "control_lib"


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
        """Run `name`.lua for `by`. Raises StoreUnavailableError."""
        now = self._clock.monotonic()
        # One run may reach the server faster than the run before it did.
        elapsed_max = "" if self._ran_at is None else repr(now - self._ran_at + CALL_SECONDS_MAX)
        answer = self._connection.run(
            load_script(name, LIBRARY),
            [*self.keys, *more_keys],
            [f"{self._events_max} {elapsed_max}", clean_text(actor, BY_CHARS_MAX), *arguments],
        )
        self._ran_at = now
        return answer
