"""Lag in, rate out."""

from dataclasses import dataclass

from pipeline.names import Mode


@dataclass(frozen=True, slots=True)
class RateDecision:
    """A rate in events/s and the mode that explains it."""

    rate: float
    mode: Mode
