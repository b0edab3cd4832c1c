"""What the steps of one tick found: measurements of the log, alarms and problems."""

from dataclasses import dataclass, field

from pipeline.decide import Measured
from pipeline.flow.clocks import Look
from pipeline.names import AlarmCode, Severity, SinkName
from pipeline.ports.control import Alarm
from pipeline.ports.rate import BatchStart


@dataclass(slots=True)
class Sample:
    """A tick's measurements of the log; None if unknown."""

    sink: SinkName
    is_database_unavailable: bool = False
    log_id: str | None = None
    stored: dict[int, int] | None = None
    database_clock: Look | None = None  # by the monotonic clock
    lag: dict[int, int] | None = None  # of each partition that answered
    held: dict[int, int] = field(default_factory=dict)  # the assumed lag of the others
    ends: dict[int, int] = field(default_factory=dict)  # next offset to append, of each partition that answered
    batches: dict[int, BatchStart] = field(default_factory=dict)  # where and when the newest ones began
    consumed: int | None = None  # next offsets to store, summed
    no_progress_seconds: dict[int, float] | None = None  # by partition with events
    lost: int = 0  # accepted events that the log lost before they were stored
    incarnation: str = ""  # that lost them
    alarms: list[Alarm] = field(default_factory=list)  # published with the rate, and logged
    problems: list[str] = field(default_factory=list)  # logged only

    @property
    def total_lag(self) -> int | None:
        """Events; None if unknown."""
        return None if self.lag is None else sum(self.lag.values()) + sum(self.held.values())

    @property
    def measured(self) -> Measured | None:
        """The policy's part of the measurements; None if the lag is unknown."""
        if self.lag is None:
            return None
        return Measured(self.ends, self.lag, self.held, self.batches, self.log_id or "")

    def degraded(self, code: str, what: str, look_at: str, partition: int | None = None) -> None:
        """Add a problem that does not stop accepting and storing events."""
        self.alarms.append(Alarm(code, Severity.DEGRADED, what, look_at, partition))

    def critical(self, code: AlarmCode, what: str, look_at: str, partition: int | None = None) -> None:
        """Add a problem because of which events are not accepted, not stored or lost."""
        self.alarms.append(Alarm(code, Severity.CRITICAL, what, look_at, partition))
