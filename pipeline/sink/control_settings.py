"""What people asked of the control loop, kept where a flush of Redis can't reach it."""

from dataclasses import dataclass

from pipeline.names import PauseReason
from pipeline.ports.control import Bands, Override
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


def load_override(sink: PostgresSink) -> Override | None:
    """The saved override, where its time is not up. Raises SinkUnavailableError."""
    for rate, until, by, why, since in sink.session.rows(query("load_override")):
        return Override(rate, until, by, why, since)
    return None


def save_override(sink: PostgresSink, override: Override) -> None:
    """Keep an override in place of an earlier one. Raises SinkUnavailableError."""
    sink.session.count(
        query("save_override"),
        {
            "rate": override.rate,
            "until": override.until,
            "set_by": override.by.replace("\0", ""),
            "why": override.why.replace("\0", ""),
            "since": override.since,
        },
    )


def delete_override(sink: PostgresSink) -> None:
    """Forget the override. Raises SinkUnavailableError."""
    sink.session.count(query("delete_override"))


def load_bands(sink: PostgresSink) -> Bands | None:
    """The saved bands; None where those of the settings hold. Raises SinkUnavailableError."""
    for rate_max, rate_min, degraded, critical, by, why, since in sink.session.rows(query("load_bands")):
        return Bands(rate_max, rate_min, degraded, critical, by, why, since)
    return None


def save_bands(sink: PostgresSink, bands: Bands) -> None:
    """Keep bands in place of earlier ones. Raises SinkUnavailableError."""
    sink.session.count(
        query("save_bands"),
        {
            "rate_max": bands.rate_max,
            "rate_min": bands.rate_min,
            "lag_degraded": bands.lag_degraded,
            "lag_critical": bands.lag_critical,
            "set_by": bands.by.replace("\0", ""),
            "why": bands.why.replace("\0", ""),
            "since": bands.since,
        },
    )


def delete_bands(sink: PostgresSink) -> None:
    """Forget the bands. Raises SinkUnavailableError."""
    sink.session.count(query("delete_bands"))
