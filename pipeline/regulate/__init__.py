"""One tick of the control loop: measures the lag, decides and publishes the rate, and handles stuck partitions."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from pipeline.errors import StoreUnavailableError
from pipeline.names import LEASE_MEASURE, LEASE_REGULATE, LEASE_TICK
from pipeline.ports.control import Bands
from pipeline.ports.log import EventLog
from pipeline.ports.rate import RatePolicy
from pipeline.regulate.context import ControlAdapters, PolicyOf, SinkQueries
from pipeline.regulate.report import RegulateReport
from pipeline.regulate.steps import tick
from pipeline.settings import Settings

# Share of the period. The tick of a second Beat finds the lease taken; a late tick does not block the next one.
_LEASE_SHARE: Final = 0.8
# A tick that waits for a silent server takes seconds. Those that come meanwhile return at once: they would occupy all
# processes of `control`, and probes and hints would wait behind them. After this time a tick counts as killed.
_TICK_SECONDS_MAX: Final = 10.0


def regulate(
    *,
    settings: Settings,
    policy_of: PolicyOf,
    log: EventLog,
    sink: SinkQueries,
    control: ControlAdapters,
    actor: str,
    shadow_of: Callable[[Bands | None], RatePolicy | None] = lambda _: None,
) -> RegulateReport:
    """Run one tick, unless another ran within the period or is under way.

    Raises StoreUnavailableError; other errors are in the report. An unknown lag is never treated as 0: the last rate
    stays, then decays by the time since the lag was known. `policy_of` makes the rate policy from the bands that an
    operator set, `shadow_of` one that only shows its rate.
    """
    period = settings.regulate_seconds
    held = control.leases.take_in_order(
        [
            (LEASE_REGULATE, period * _LEASE_SHARE),
            (LEASE_TICK, _TICK_SECONDS_MAX),
            # Ticks come a little early or late: the one that is due finds this lease at its end.
            (LEASE_MEASURE, max(period * _LEASE_SHARE, settings.measure_seconds - period / 2)),
        ]
    )
    if len(held) < 2:
        return RegulateReport(ran=False)
    under_way = held[1]
    try:
        report = tick(
            settings=settings,
            policy_of=policy_of,
            shadow_of=shadow_of,
            log=log,
            sink=sink,
            control=control,
            actor=actor,
        )
    finally:
        with suppress(StoreUnavailableError):  # then it expires
            control.leases.give_back(LEASE_TICK, under_way)
    return replace(report, is_measure_due=len(held) > 2)
