"""What every adapter of the control store agrees on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pipeline.names import BreakerState, PauseReason
from pipeline.ports.control import Pause, PublishedRate

BY_CHARS_MAX: Final = 200
WHY_CHARS_MAX: Final = 1000  # error texts of a database can be pages long
PROCESS_SECONDS_MAX: Final = 10.0  # an ingest process that has taken no tokens for so long is not counted


def clean_text(value: str, chars_max: int) -> str:
    """`value` cut to a length, and without what UTF-8 cannot carry (error texts quote anything)."""
    return value[:chars_max].encode("utf-8", "replace").decode("utf-8")


def without_override(rate: PublishedRate, pauses: Sequence[Pause], floor_rate: float) -> PublishedRate:
    """What is published once an override has ended: the policy's rate, or the floor while the breaker is open."""
    is_open = any(pause.reason is PauseReason.BREAKER for pause in pauses)
    return replace(rate, rate=min(rate.base_rate, floor_rate) if is_open else rate.base_rate)


def breaker_state(pauses: Sequence[Pause], *, complete: bool, probing: bool) -> BreakerState:
    """What the reasons say about the breaker; one that holds is known even where the set is not complete."""
    if any(pause.reason is PauseReason.BREAKER for pause in pauses):
        return BreakerState.HALF_OPEN if probing else BreakerState.OPEN
    return BreakerState.CLOSED if complete else BreakerState.UNKNOWN
