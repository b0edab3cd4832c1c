"""The policy `bands`: the rate follows the lag in events, between two thresholds."""

from dataclasses import dataclass

from pipeline.event_text import rate_text
from pipeline.names import Mode, SinkName
from pipeline.ports.control import Bands
from pipeline.ports.rate import Explanation, PolicyState, RateDecision, RateSample, Threshold
from pipeline.settings import Settings

NAME = "bands"

_REASONS = {Mode.NORMAL: "lag is low", Mode.DEGRADED: "lag is degraded", Mode.CRITICAL: "lag is critical"}


@dataclass(frozen=True, slots=True)
class BandPolicy:
    """Full rate below the lower threshold, the lowest rate (RATE_MIN) above the upper one, a line between them.

        rate(lag) = rate_max - (rate_max - rate_min) * (lag - lag_degraded) / (lag_critical - lag_degraded)

    Each threshold belongs to the line. There the line has the value of the neighbouring band, so the rate has no jump.
    It needs no state.
    """

    rate_max: float  # events/s, ≥ rate_min
    rate_min: float  # events/s, > 0
    lag_degraded: int  # events, < lag_critical
    lag_critical: int  # events
    actor: str = ""  # who set the bands; empty: they are those of the settings
    why: str = ""
    sink: SinkName = SinkName.POSTGRESQL  # for the explanation

    @classmethod
    def make(cls, settings: Settings, bands: Bands | None) -> "BandPolicy":
        """The bands that an operator set, or those of the settings, which have already been validated."""
        if bands is None:
            own = (settings.rate_max, settings.rate_min, settings.lag_degraded, settings.lag_critical)
            return cls(*own, sink=settings.sink_name)
        asked = (bands.rate_max, bands.rate_min, bands.lag_degraded, bands.lag_critical, bands.actor, bands.why)
        return cls(*asked, sink=settings.sink_name)

    @property
    def floor_rate(self) -> float:
        """The lowest rate that `decide` gives, events/s."""
        return self.rate_min

    def describe(self) -> Explanation:
        """Both thresholds, and the rates beyond them."""
        return self._explained("", "")

    def decide(self, sample: RateSample, state: PolicyState | None = None) -> RateDecision:
        """The rate for the lag of all partitions together."""
        rate, mode = self.rate_of(sample.lag)
        return RateDecision(rate, mode, self._explained(_REASONS[mode], f"lag {sample.lag}"))

    def rate_of(self, lag: int) -> tuple[float, Mode]:
        """The rate (events/s) and the mode for a lag in events (≥ 0)."""
        if lag < self.lag_degraded:
            return self.rate_max, Mode.NORMAL
        if lag > self.lag_critical:
            return self.rate_min, Mode.CRITICAL
        share = (lag - self.lag_degraded) / (self.lag_critical - self.lag_degraded)
        rate = self.rate_max - (self.rate_max - self.rate_min) * share
        return max(self.rate_min, rate), Mode.DEGRADED

    def _explained(self, reason: str, because: str) -> Explanation:
        setter = f"; set by {self.actor}: {self.why}" if self.actor else ""
        return Explanation(
            policy=NAME,
            sentence=f"{rate_text(self.rate_max)} below a lag of {self.lag_degraded:,} events, falling to "
            f"{rate_text(self.rate_min)} at {self.lag_critical:,}{setter}",
            reason=reason,
            because=because,
            rate_max=self.rate_max,
            look_at=f"whether {self.sink} can store more: then raise RATE_MAX; else clients send too much",
            thresholds=(
                Threshold("degraded from", self.lag_degraded, "events", Mode.DEGRADED, is_inclusive=True),
                Threshold("critical above", self.lag_critical, "events", Mode.CRITICAL),
            ),
            parameters={
                "rateMax": self.rate_max,
                "rateMin": self.rate_min,
                "lagDegraded": self.lag_degraded,
                "lagCritical": self.lag_critical,
                "setBy": self.actor or None,
            },
        )
