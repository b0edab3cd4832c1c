"""The control server in memory, for tests and simulation: its content, and the base of its adapters.

Displayed times are those of the wall clock. Decisions use the monotonic clock.
"""

import threading
import uuid
from copy import deepcopy
from dataclasses import dataclass, field

from pipeline.clock import Clock, SystemClock
from pipeline.errors import StoreUnavailableError
from pipeline.flow import bucket as bucket_flow
from pipeline.flow.rate import LowRate
from pipeline.flow.refusals import Refusals
from pipeline.flow.shares import Offered
from pipeline.names import PauseReason
from pipeline.ports.control import Bands, ControlEvent, OperatorLimit, Override, Pause, PublishedRate, Trouble
from pipeline.ports.keys import MirroredKeys
from pipeline.settings import Settings


@dataclass
class LowestOffsets:
    """The lowest offsets of one log, of one life of the server."""

    life: str
    incarnation: str | None = None
    is_complete: bool = False
    offsets: dict[int, int] = field(default_factory=dict)


@dataclass
class Content:
    """The data that a flush loses."""

    rate: PublishedRate | None = None
    recorded_rate: float | None = None  # the effective rate of the last control event about it
    low_rates: tuple[LowRate, ...] = ()
    floor_rate: float = 0.0
    pauses: dict[tuple[str, int | None], Pause] = field(default_factory=dict)  # by the reason's name and partition
    complete: bool = False
    generation: int = 0
    rate_at: float = 0.0  # when it was published; this time and all times below are monotonic
    override: Override | None = None
    override_at: float = 0.0  # when it was set
    bands: Bands | None = None
    accounts: dict[str, OperatorLimit] = field(default_factory=dict)
    has_accounts: bool = False  # `accounts` is complete
    keys: MirroredKeys | None = None
    events: list[ControlEvent] = field(default_factory=list)
    bucket: bucket_flow.BucketState | None = None
    bucket_version: int = 0  # of the rate at the bucket's last call
    ran_dry: int = 0  # calls to the bucket for which Taken.ran_dry is true
    processes: dict[str, float] = field(default_factory=dict)
    lowest_offsets: dict[str, LowestOffsets] = field(default_factory=dict)
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    progress: dict[str, tuple[float, dict[int, tuple[int, float]]]] = field(default_factory=dict)
    offers: dict[str, tuple[float, Offered]] = field(default_factory=dict)  # by process, with the time of the report
    # By process and slice, with the time of the report.
    throttle: dict[tuple[str, int], tuple[float, Refusals]] = field(default_factory=dict)
    troubles: dict[str, list[Trouble]] = field(default_factory=dict)
    troubles_at: dict[str, float] = field(default_factory=dict)  # time of the report, by process

    @property
    def breaker_holds(self) -> bool:
        """Whether the breaker pauses consumption."""
        return (PauseReason.BREAKER.value, None) in self.pauses


class MemoryServer:
    """The server that the adapters of one system share, as a Redis server. `is_unavailable` stops its responses."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.is_unavailable = False
        self.changed = threading.Condition(threading.RLock())
        self._content = Content()
        self._last_event_number = 0
        self.process = uuid.uuid4().hex

    def flush(self) -> None:
        """Lose everything."""
        with self.changed:
            self._content = Content()

    def remember(self) -> Content:
        """A copy of the content, to which a later `restart` may return."""
        with self.changed:
            return deepcopy(self._content)

    def restart(self, content: Content | None = None) -> None:
        """Come back as another process, with everything, or with the content of `remember` (an older file)."""
        with self.changed:
            self.process = uuid.uuid4().hex
            self._content = self._content if content is None else deepcopy(content)

    def content(self) -> Content:
        """The content; hold `changed` while using it. Raises StoreUnavailableError."""
        if self.is_unavailable:
            raise StoreUnavailableError
        return self._content

    def next_event_id(self) -> str:
        """A position later than all earlier ones, even after a flush."""
        self._last_event_number += 1
        return f"{self._last_event_number:020d}"

    def override_left(self, override: Override) -> float:
        """Seconds until the override ends; hold `changed`. Raises StoreUnavailableError."""
        held_for = self.clock.monotonic() - self.content().override_at
        return override.until - override.since - held_for


class MemoryAdapter:
    """A client of the server; the processes of one system have one server."""

    def __init__(self, settings: Settings, server: MemoryServer) -> None:
        self._settings = settings
        self._server = server
