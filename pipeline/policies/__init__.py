"""The rate policies, by the word of RATE_POLICY. A new policy is one file here, one row, and its settings."""

from collections.abc import Callable
from typing import Final

from pipeline.policies import bands, drain_time
from pipeline.ports.control import Bands, ControlState
from pipeline.ports.rate import Explanation, RatePolicy
from pipeline.settings import Settings

# Each makes its policy from the settings, and from the bands that an operator set (None: none).
POLICIES: Final[dict[str, Callable[[Settings, Bands | None], RatePolicy]]] = {
    bands.NAME: bands.BandPolicy.make,
    drain_time.NAME: drain_time.DrainTimePolicy.make,
}


def make_policy(settings: Settings, asked_bands: Bands | None = None) -> RatePolicy:
    """The policy of RATE_POLICY."""
    return POLICIES[settings.rate_policy](settings, asked_bands)


def make_shadow(settings: Settings, asked_bands: Bands | None = None) -> RatePolicy | None:
    """The policy of RATE_POLICY_SHADOW; None if there is none."""
    return make_policy(settings.of_shadow(), asked_bands) if settings.rate_policy_shadow else None


def explanation_of(settings: Settings, state: ControlState | None) -> Explanation:
    """What the policy of the controller says; if it has published nothing, what the policy of the settings would say.

    `state` is None if the control store does not answer.
    """
    if state is not None and state.rate is not None and state.rate.policy is not None:
        return state.rate.policy.explanation
    return make_policy(settings, None if state is None else state.bands).describe()
