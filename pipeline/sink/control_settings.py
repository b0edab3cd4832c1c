"""What people asked of the control loop, kept where a flush of Redis can't reach it."""

from dataclasses import dataclass

from pipeline.names import PauseReason
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.queries import query


@dataclass(frozen=True, slots=True)
class SavedPause:
    """A pause that holds until somebody lifts it; `since` is in seconds since the epoch."""

    reason: PauseReason
    by: str
    why: str
    since: float


def load_pauses(sink: PostgresSink) -> list[SavedPause]:
    """All saved pauses. Raises SinkUnavailableError. A reason that this version doesn't know is left out."""
    known = set(PauseReason)
    return [
        SavedPause(PauseReason(reason), by, why, since)
        for reason, by, why, since in sink.session.rows(query("load_pauses"))
        if reason in known
    ]


def save_pause(sink: PostgresSink, pause: SavedPause) -> None:
    """Keep a pause; one that is kept already stays as it is. Raises SinkUnavailableError."""
    sink.session.count(
        query("save_pause"),
        {
            "reason": pause.reason.value,
            "paused_by": pause.by.replace("\0", ""),
            "why": pause.why.replace("\0", ""),
            "since": pause.since,
        },
    )


def delete_pause(sink: PostgresSink, reason: PauseReason) -> bool:
    """Forget a pause; whether there was one. Raises SinkUnavailableError."""
    return sink.session.count(query("delete_pause"), {"reason": reason.value}) > 0
