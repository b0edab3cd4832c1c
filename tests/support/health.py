"""A snapshot of a system on which nothing is wrong, to be changed by tests."""

from pipeline.health.snapshot import HealthInputs, Traffic
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.policies import make_policy
from pipeline.ports.control import Override, Pause
from support.control import control_settings

NOW = 1_700_000_000.0  # 22:13:20 UTC
HEALTHY = HealthInputs(
    at=NOW,
    mode=Mode.NORMAL,
    rate=1000.0,
    base_rate=1000.0,
    floor_rate=100.0,
    override=None,
    explanation=make_policy(control_settings("redis://nowhere")).describe(),
    lag=12,
    lag_by_partition={0: 12, 1: 0},
    drain_rate=800.0,
    breaker=BreakerState.CLOSED,
    pauses=(),
    controller_age=2.0,
    controller_period=5.0,
    event_log="redis",
    no_progress_seconds={0: 1.0},
    traffic=Traffic(admitted=800.0, refused=0.0, refused_share=0.0, unavailable_share=0.0),
)
REFUSING = Traffic(admitted=900.0, refused=100.0, refused_share=0.1, unavailable_share=0.0)
BREAKER = Pause(PauseReason.BREAKER, 3, NOW - 10, "worker/1", "connection refused")
OVERRIDE = Override(50.0, NOW + 60, "ann@host", "a test", NOW - 5)
BY_HAND = Pause(PauseReason.OPERATOR, 4, NOW - 10, "ann@host", "moving the disk")
