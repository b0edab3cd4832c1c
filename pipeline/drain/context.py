"""What a run works with: adapters and settings, and what its worker allows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

from pipeline.clock import Clock
from pipeline.pace import Pace
from pipeline.ports.breaker import Breaker
from pipeline.ports.control import OffsetFence
from pipeline.ports.event_sink import Encoded, EventSink, StoreResult
from pipeline.ports.log import EventLog
from pipeline.settings import Settings


class Quiet(Protocol):
    """What a worker process allows its drains while no records arrive."""

    def poll_seconds(self) -> float:
        """How long one wait for records may last: after it, the run checks the pauses."""

    def is_ending(self) -> bool:
        """Whether a run without records ends: its worker stops, or needs the process for another drain."""


@dataclass(frozen=True, slots=True)
class DrainContext(Generic[Encoded]):
    """The adapters and settings that a run uses."""

    log: EventLog
    sink: EventSink[Encoded]
    fence: OffsetFence
    breaker: Breaker
    settings: Settings
    clock: Clock
    on_stored: Callable[[int, StoreResult], None] | None
    pace: Pace
    quiet: Quiet | None = None

    def poll_seconds(self) -> float:
        """How long one wait for records may last."""
        return self.settings.drain_poll_seconds if self.quiet is None else self.quiet.poll_seconds()

    def is_ending(self) -> bool:
        """Whether a run without records is to end."""
        return self.quiet is not None and self.quiet.is_ending()
