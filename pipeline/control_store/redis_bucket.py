"""The global token bucket on Redis."""

from dataclasses import dataclass

from pipeline.clock import Clock, SystemClock
from pipeline.control_store.common import PROCESS_SECONDS_MAX
from pipeline.control_store.connection import ControlConnection
from pipeline.control_store.control_scripts import ControlScripts
from pipeline.flow.age import Age
from pipeline.flow.bucket import ALLOWANCE, RESERVES, TOLERANCE_TOKENS
from pipeline.flow.rate import Decay
from pipeline.names import KEY_BUCKET, KEY_OVERRIDE, KEY_PAUSE, KEY_PROCESSES, KEY_RATE, LEVEL_HIGHEST, Level
from pipeline.ports.bucket import Grant
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class _LastRate:
    """The newest rate that this process received, and when it first received it, on its own monotonic clock."""

    rate: float
    version: int
    seen_at: float


class RedisBucket:
    """One token bucket for all ingest processes: one script and one round trip for each call; see Bucket.

    The rate is the published one; it decays when the controller is silent. On a flushed server it is the last rate that
    this process saw, until the controller publishes again. On a fresh system it is the lowest rate.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._connection = ControlConnection(settings)
        self._scripts = ControlScripts(settings, self._connection, self._clock)
        self._keys = [self._connection.key(KEY_BUCKET), self._connection.key(KEY_PROCESSES)]
        self._read_keys = [self._connection.key(name) for name in (KEY_RATE, KEY_PAUSE, KEY_OVERRIDE)]
        self._decay = Decay.from_settings(settings)
        self._constants = [
            repr(settings.burst_seconds),
            repr(self._decay.hold_seconds),
            repr(self._decay.halving_seconds),
            repr(PROCESS_SECONDS_MAX),
            repr(TOLERANCE_TOKENS),
        ]
        self._levels = [repr(ALLOWANCE), *map(repr, RESERVES)]
        self._last: _LastRate | None = None
        self._published_at = ""  # of the newest rate that was seen, as text from the server
        self._publication_age = Age()
        self._override_at = ""  # when the newest override that was seen was last noted, likewise
        self._override_age = Age()

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0, level: Level = LEVEL_HIGHEST) -> Grant:
        now = self._clock.monotonic()
        fallback_rate, fallback_version = self._fallback(now)
        granted, wait_seconds, tokens, rate, burst, version, live, *rest = self._scripts.look(
            "bucket",
            self._keys,
            *self._read_keys,
            str(needed),
            str(wanted),
            process,
            *self._constants,
            repr(fallback_rate),
            str(fallback_version),
            repr(self._settings.rate_min),
            self._published_at,
            repr(self._publication_age.now(now)),
            self._override_at,
            repr(self._override_age.now(now)),
            str(returned),
            str(level.value),
            *self._levels,
        )
        self._published_at, age, self._override_at, override_age, deferred, deferred_by = rest
        self._publication_age.of(self._published_at, float(age), now=now)
        self._override_age.of(self._override_at, float(override_age), now=now)
        grant = Grant(
            granted=granted,
            wait_seconds=float(wait_seconds),
            tokens=float(tokens),
            rate=float(rate),
            burst=burst,
            version=int(version),
            live_processes=live,
            deferred=float(deferred),
            deferred_by=Level(int(deferred_by)),
        )
        if self._last is None or grant.version != self._last.version:
            self._last = _LastRate(grant.rate, grant.version, now)
        return grant

    def _fallback(self, now: float) -> tuple[float, int]:
        """Rate and version to use after a flush of the server."""
        if self._last is None:
            return self._settings.rate_min, 0
        rate = self._decay.rate(
            self._last.rate,
            now - self._last.seen_at,
            floor=min(self._last.rate, self._settings.rate_min),  # an operator may have set a rate below RATE_MIN
        )
        return rate, self._last.version
