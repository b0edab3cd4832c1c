"""The rate policy: computes the admitted rate from the lag."""

from typing import Protocol

from pipeline.flow.rate import RateDecision


class RatePolicy(Protocol):
    """A pure function of a known lag. For an unknown lag see `pipeline.flow.rate.Decay`."""

    @property
    def floor_rate(self) -> float:
        """The lowest rate that the policy decides, events/s."""

    def decide(self, lag: int) -> RateDecision:
        """The rate for a lag in events (≥ 0)."""
