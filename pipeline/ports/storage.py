"""The stores behind the event log, as one process uses them: they may share one connection."""

from dataclasses import dataclass
from typing import Any

from pipeline.ports.dead_letters import DeadLetters
from pipeline.ports.event_sink import EventSink
from pipeline.ports.known_logs import KnownLogs
from pipeline.ports.log_marks import LogMarks
from pipeline.ports.offset_store import OffsetStore
from pipeline.ports.operator_store import OperatorStore
from pipeline.ports.retention import Retention


@dataclass(frozen=True, slots=True)
class Storage:
    """Where events go, and where offsets, dead letters and operators' settings are kept.

    Not for use by several threads at once.
    """

    events: EventSink[Any]  # each sink encodes batches into a type of its own
    offsets: OffsetStore
    dead_letters: DeadLetters
    operators: OperatorStore
    known_logs: KnownLogs
    retention: Retention
    log_marks: LogMarks

    def close(self) -> None:
        """Close all connections; idempotent. They open again on the next use."""
        self.events.close()
        self.offsets.close()
        self.operators.close()
