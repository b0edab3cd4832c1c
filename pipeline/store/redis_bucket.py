"""The global token bucket on Redis."""

from dataclasses import dataclass

from pipeline.clock import Clock, SystemClock
from pipeline.flow.bucket import TOLERANCE_TOKENS
from pipeline.flow.rate import hold_or_decay
from pipeline.names import KEY_BUCKET, KEY_PROCESSES
from pipeline.ports.bucket import Grant
from pipeline.settings import Settings
from pipeline.store.common import PROCESS_SECONDS_MAX
from pipeline.store.connection import ControlConnection, load_script
from pipeline.store.redis_control import LIBRARY, control_keys


@dataclass(frozen=True, slots=True)
class _LastRate:
    """The newest rate that this process was given, and when it first was, on its own monotonic clock."""

    rate: float
    version: int
    seen_at: float


class RedisBucket:
    """One token bucket for all ingest processes: one script and one round trip a call; see Bucket.

    The rate is the published one, decaying once the controller is silent. On a server that was flushed it is the
    last one that this process saw, until the controller publishes again; on a fresh system it is the floor.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._connection = ControlConnection(settings)
        self._keys = [*control_keys(self._connection), *(self._connection.key(n) for n in (KEY_BUCKET, KEY_PROCESSES))]
        self._events_max = str(settings.control_events_max)
        self._constants = [
            repr(settings.burst_seconds),
            repr(settings.rate_hold_periods * settings.regulate_seconds),
            repr(settings.regulate_seconds),
            repr(PROCESS_SECONDS_MAX),
            repr(TOLERANCE_TOKENS),
        ]
        self._last: _LastRate | None = None

    def take(self, *, needed: int, wanted: int, process: str) -> Grant:
        now = self._clock.monotonic()
        fallback_rate, fallback_version = self._fallback(now)
        granted, wait_seconds, tokens, rate, burst, version, live = self._connection.run(
            load_script("bucket", LIBRARY),
            self._keys,
            [
                self._events_max,
                process,
                str(needed),
                str(wanted),
                process,
                *self._constants,
                repr(fallback_rate),
                str(fallback_version),
                repr(self._settings.rate_min),
            ],
        )
        grant = Grant(
            granted=granted,
            wait_seconds=float(wait_seconds),
            tokens=float(tokens),
            rate=float(rate),
            burst=burst,
            version=int(version),
            live_processes=live,
        )
        if self._last is None or grant.version != self._last.version:
            self._last = _LastRate(grant.rate, grant.version, now)
        return grant

    def _fallback(self, now: float) -> tuple[float, int]:
        """Rate and version for a server that was flushed."""
        if self._last is None:
            return self._settings.rate_min, 0
        rate = hold_or_decay(
            self._last.rate,
            now - self._last.seen_at,
            period_seconds=self._settings.regulate_seconds,
            hold_periods=self._settings.rate_hold_periods,
            floor=self._settings.rate_min,
        )
        return rate, self._last.version
