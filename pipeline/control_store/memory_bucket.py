"""The token bucket in memory."""

from dataclasses import replace

from pipeline.control_store.common import PROCESS_SECONDS_MAX
from pipeline.control_store.memory_server import Content, MemoryAdapter, MemoryServer
from pipeline.flow import bucket as bucket_flow
from pipeline.flow.rate import Decay, capped_by_breaker, lowest_since
from pipeline.names import LEVEL_HIGHEST, Level
from pipeline.ports.bucket import Grant
from pipeline.settings import Settings


class MemoryBucket(MemoryAdapter):
    """One token bucket for all ingest processes; see Bucket."""

    def __init__(self, settings: Settings, server: MemoryServer) -> None:
        super().__init__(settings, server)
        self._decay = Decay.from_settings(settings)
        self._last_rate = settings.rate_min
        self._last_version = 0

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0, level: Level = LEVEL_HIGHEST) -> Grant:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.monotonic()
            rate, version = self._rate(content, now)
            burst = bucket_flow.burst_of(rate, self._settings.burst_seconds)
            taken = bucket_flow.take(
                content.bucket,
                now=now,
                rate=rate,
                burst=burst,
                needed=needed,
                wanted=wanted,
                returned=returned,
                level=level,
                lowest_rate=lowest_since(content.low_rates, content.bucket_version),
            )
            content.bucket, content.bucket_version = taken.state, version
            content.ran_dry += taken.ran_dry
            content.processes[process] = now
            for name, seen_at in list(content.processes.items()):
                if seen_at <= now - PROCESS_SECONDS_MAX:
                    del content.processes[name]
            self._last_rate, self._last_version = rate, version
            return Grant(
                granted=taken.granted,
                wait_seconds=taken.wait_seconds,
                tokens=taken.state.tokens,
                rate=rate,
                burst=burst,
                version=version,
                live_processes=len(content.processes),
                deferred=taken.state.deferred,
                deferred_by=taken.state.deferred_by,
            )

    def _rate(self, content: Content, now: float) -> tuple[float, int]:
        """The published rate, decayed if the controller is silent; after a flush the last one."""
        published = content.rate
        if published is None:
            rate = capped_by_breaker(self._last_rate, self._settings.rate_min, is_open=content.breaker_holds)
            return rate, self._last_version
        if content.override is not None:
            if self._server.override_left(content.override) > 0:
                return published.rate, published.version
            # The next process that writes ends it, under a newer version.
            effective = capped_by_breaker(published.base_rate, content.floor_rate, is_open=content.breaker_holds)
            published = replace(published, rate=effective, version=published.version + 1)
        known_at = published.published_at if published.lag_known_at is None else published.lag_known_at
        decided_after = published.published_at - known_at
        rate = self._decay.rate(
            published.rate,
            decided_after + now - content.rate_at,
            floor=min(published.rate, content.floor_rate),
            decided_after_seconds=decided_after,
        )
        return rate, published.version
