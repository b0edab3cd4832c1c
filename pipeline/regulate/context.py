"""What a tick works with: the adapters of the control store, and the queries to PostgreSQL."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.clock import Clock, SystemClock
from pipeline.flow.age import Age
from pipeline.late_begin import LateBegins
from pipeline.ports.control import Alarm, Bands, ControlEvents, ControlStore, Leases, OffsetFence, Progress, Troubles
from pipeline.ports.offers import Offers
from pipeline.ports.offset_store import StoredOffsets
from pipeline.ports.operator_store import OperatorState
from pipeline.ports.rate import RatePolicy

# Makes the rate policy from the bands that an operator set (None: none).
PolicyOf = Callable[[Bands | None], RatePolicy]

# Control events, the newest ones, in which a tick searches for what an earlier one recorded: as many as are kept.
EVENTS_SEARCHED: Final = 1000


@dataclass(frozen=True, slots=True)
class ControlAdapters:
    """The adapters of the control store that a tick uses."""

    store: ControlStore
    events: ControlEvents
    leases: Leases
    progress: Progress
    fence: OffsetFence
    troubles: Troubles | None = None  # None: no process reports problems
    clock: Clock = field(default_factory=SystemClock)
    lag_age: Age = field(default_factory=Age)  # of the last known lag; kept from tick to tick, as rate_age is
    rate_age: Age = field(default_factory=Age)  # of the last publication
    late_begins: LateBegins = field(default_factory=LateBegins)  # kept from tick to tick
    offers: Offers | None = None  # None: no ingest process reports what accounts offer


@dataclass(frozen=True, slots=True)
class SinkQueries:
    """The queries that a tick sends to PostgreSQL; each may raise a SluiceError."""

    stored_offsets: Callable[[str], StoredOffsets]  # of a log_id
    settled_offsets: Callable[[str], dict[int, int]]  # log_id -> the offsets, after all open transactions have ended
    load_operator_state: Callable[[], OperatorState]  # settings of operators, and pauses of drains that stopped
    terminate_drainer: Callable[[str, int], bool]  # log_id, partition -> whether a holding backend was ended
    # log_id, partition -> the reason why no record of it is stored, in words; may also query Celery's workers
    why_standing: Callable[[str, int], str]
    schema_problem: str | None = None  # the reason why the schema could not be updated, if only an operator can fix it
    server_problem: str | None = None  # the reason why the server can't be used at all, as the migration found
    session_problem: str | None = None  # the reason why workers for batches do not start, as the last look found
    # log_id, end of each partition: what a tick has seen, also if PostgreSQL does not answer; raises nothing
    see_log: Callable[[str, Mapping[int, int]], None] = field(default=lambda *_: None)
    # log_id, end of each partition -> an alarm for each former log with events that are not stored
    former_logs: Callable[[str, Mapping[int, int]], Sequence[Alarm]] = field(default=lambda *_: ())
