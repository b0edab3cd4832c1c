"""The control loop: what decides the admitted rate, and when workers pause."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

from pipeline.settings.field import setting

_DEFAULTS_OF_POLICY: Final[dict[str, dict[str, float]]] = {
    "drain_time": {"rate_max": 50_000.0, "regulate_seconds": 1.0}
}


@dataclass(frozen=True, kw_only=True)
class ControlLoopSettings:
    """Rate, health, breaker and overrides."""

    rate_policy: str = setting(
        "bands",
        "What the admitted rate follows. bands: the lag in events, between LAG_DEGRADED and LAG_CRITICAL. drain_time: "
        "what the sink stores; it changes the defaults of RATE_MAX to 50000 and of REGULATE_SECONDS to 1",
        choices=("bands", "drain_time"),
        when="drain_time if the capacity of the sink is unknown or changes. Set it for every process",
    )
    rate_policy_shadow: str = setting(
        "",
        "A second rate policy that decides beside the first and admits nothing: metrics and page show its rate",
        choices=("", "bands", "drain_time"),
        when="before you change RATE_POLICY, to see what the other policy would do with the same load",
    )
    drain_target_seconds: float = setting(
        2.0,
        "drain_time: time within which the events that wait in the log should be stored",
        low=0.2,
        high=60,
        when="higher if batches take seconds. Lower it to store events sooner, with less throughput",
    )
    rate_max: float = setting(
        1000.0,
        "bands: admitted rate at low lag, events/s. drain_time: the highest rate, only for safety (50000)",
        unit="events/s",
        low=1,
        high=10_000_000,
        when="first of all, to the rate that the sink can store for hours, minus a reserve",
    )
    rate_min: float = setting(
        100.0,
        "Admitted rate at high lag and while the breaker is open, events/s",
        unit="events/s",
        low=1,
        high=10_000_000,
        when="to a rate that the sink can store at its slowest, so that a backlog still shrinks",
    )
    lag_degraded: int = setting(
        10_000,
        "Lag from which the rate falls, events",
        unit="events",
        low=1,
        high=1_000_000_000,
        when="together with RATE_MAX. The default is ten seconds of the default rate",
    )
    lag_critical: int = setting(
        50_000,
        "Lag above which the rate is at its lowest, events",
        unit="events",
        low=1,
        high=1_000_000_000,
        when="together with LAG_DEGRADED, to the largest lag that is acceptable",
    )
    regulate_seconds: float = setting(
        5.0,
        "Period of the control loop; 1 with RATE_POLICY=drain_time",
        low=0.1,
        high=300,
        when="lower if the lag oscillates. After three periods without a rate, health reports a silent controller",
    )
    rate_hold_seconds: float = setting(
        30.0,
        "Time for which the last rate holds while the lag is unknown or the controller is silent; then it halves",
        low=0.1,
        high=86_400,
        when="clients may be served at the last rate for a longer or shorter time",
    )
    rate_halving_seconds: float = setting(
        5.0,
        "After that, the rate halves each time this period has passed, down to RATE_MIN",
        low=0.1,
        high=86_400,
        when="together with RATE_HOLD_SECONDS, for a slower or faster fall",
    )
    rate_hold_periods: int = setting(
        0,
        "RATE_HOLD_SECONDS in periods of the control loop, as earlier versions count; the rate then halves each period",
        low=0,
        high=1000,
        when="never. With 0, RATE_HOLD_SECONDS and RATE_HALVING_SECONDS decide; the next version ignores this setting",
    )
    no_progress_seconds_max: float = setting(
        30.0,
        "Health is critical if a partition with events has stored none for this time and is not paused",
        low=1,
        high=3600,
        when="a batch may take longer. The controller measures it once in REGULATE_SECONDS",
    )
    clock_difference_seconds_max: float = setting(
        1.0,
        "Health is degraded if the clock of a process or of PostgreSQL differs more from the control store's",
        low=0.1,
        high=86_400,
        when="the clocks of hosts can't be synchronised better. No decision depends on it",
    )
    refused_ratio_max: float = setting(
        0.05,
        "Health is degraded if a larger share of the offered events was refused",
        unit="share",
        low=0.0,
        high=1.0,
        when="refusals are normal in your system; 1 never reports them",
    )
    refused_seconds: float = setting(
        60.0,
        "Time over which REFUSED_RATIO_MAX is measured",
        low=1,
        high=600,
        when="lower to report short bursts, higher to ignore them",
    )
    burst_seconds: float = setting(
        1.0,
        "Tokens of a full bucket, in seconds of the rate",
        low=0.01,
        high=60,
        when="clients send bursts that are refused, although the sink could store them",
    )
    lease_seconds: float = setting(
        0.03,
        "Tokens that an ingest process takes from the bucket at once, in seconds of the rate",
        low=0.001,
        high=1,
        when="many ingest processes share a low rate: only one process can use the tokens of a lease",
    )
    admission_levels: bool = setting(
        False,
        "Refuse less important events first: DEBUG and TRACE, then INFO, then WARN; ERROR and FATAL last. The highest "
        "severity of a body counts, or its header Priority (docs/adr/admission-levels.md)",
        when="clients send more than can be stored, and some events matter more; set it for every ingest process",
    )
    ingest_processes_max: int = setting(
        8,
        "Most ingest processes of all hosts together. Without Redis, one that has just started admits this part of the "
        "rate, or of RATE_MIN if it knows no rate",
        unit="processes",
        low=1,
        high=100_000,
        when="more processes run: without Redis, all together would admit more than RATE_MIN. Lower it if fewer run",
    )
    control_events_max: int = setting(
        1000,
        "Control events kept",
        unit="events",
        low=10,
        high=1_000_000,
        when="you want a longer history; an event needs about 300 bytes",
    )
    breaker_failures_max: int = setting(
        5,
        "Consecutive failures of the sink that open the breaker",
        unit="failures",
        low=1,
        high=1000,
        when="an unstable network opens the breaker too often",
    )
    probe_seconds: float = setting(
        2.0,
        "Period of the prober while the breaker is open",
        low=0.1,
        high=300,
        when="lower to resume sooner, higher for less load on a PostgreSQL that is starting",
    )
    probe_wait_seconds_max: float = setting(
        30.0,
        "The longest wait before a probe, if the breaker opened repeatedly and no event was stored between",
        low=0.1,
        high=3600,
        when="lower to resume sooner after a long time in which small writes succeeded and batches failed",
    )
    hint_seconds: float = setting(
        1.0,
        "Period of the fallback hints for drains while records wait; else they come every 5 s",
        low=0.1,
        high=60,
        when="rarely. It only matters if a drain's own hint was lost",
    )
    queue_untaken_seconds_max: float = setting(
        5.0,
        "A worker that is not paused and receives no waiting message for this time reconnects to its queue",
        low=4,  # its event loop may wait 3 s for a remote command
        high=3600,
        when="rarely. After the same time again the worker exits, and its supervisor restarts it",
    )
    pause_reconcile_seconds: float = setting(
        5.0,
        "How often a worker's event loop checks the thread that follows the pauses. That one compares the consumer "
        "with them at each change, and once a second",
        low=0.05,
        high=60,
        when="rarely. A worker follows a pause at once, and corrects what it missed after a second",
    )

    override_seconds: float = setting(
        600.0,
        "Duration of an override if the command names none",
        low=1,
        high=86_400,
        when="rarely. Name the duration in the command",
    )
    override_seconds_max: float = setting(
        86_400.0,
        "The longest duration of an override",
        low=1,
        high=31_536_000,
        when="a limit is planned for longer. Changing RATE_MAX is usually better",
    )
    override_rate_max: float = setting(
        10_000.0,
        "The highest rate of an override; RATE_MAX if that is higher",
        unit="events/s",
        low=1,
        high=10_000_000,
        when="together with RATE_MAX, to the highest rate that the event log accepts",
    )

    def of_shadow(self) -> Self:
        """The settings for the policy of RATE_POLICY_SHADOW: a RATE_MAX that was left out is that policy's own."""
        own, other = defaults_of_policy(self.rate_policy), defaults_of_policy(self.rate_policy_shadow)
        default = ControlLoopSettings.rate_max
        is_default = self.rate_max == own.get("rate_max", default)
        rate_max = other.get("rate_max", default) if is_default else self.rate_max
        return dataclasses.replace(self, rate_policy=self.rate_policy_shadow, rate_policy_shadow="", rate_max=rate_max)


def defaults_of_policy(name: str) -> Mapping[str, float]:
    """Other defaults for a rate policy, by setting: for values that the environment leaves out."""
    return _DEFAULTS_OF_POLICY.get(name, {})


def control_loop_problems(settings: ControlLoopSettings) -> Iterator[str]:
    """Limits that contradict each other."""
    if settings.rate_min > settings.rate_max:
        yield f"RATE_MIN={settings.rate_min} is above RATE_MAX={settings.rate_max}"
    if settings.lag_degraded >= settings.lag_critical:
        yield f"LAG_DEGRADED={settings.lag_degraded} is not below LAG_CRITICAL={settings.lag_critical}"
    if settings.lease_seconds > settings.burst_seconds:
        yield f"LEASE_SECONDS={settings.lease_seconds} is above BURST_SECONDS={settings.burst_seconds}"
