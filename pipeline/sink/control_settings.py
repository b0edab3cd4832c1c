"""The operators' settings of the control loop, kept where a flush of Redis can't reach them."""

import json
from typing import Any

from pipeline.names import PauseReason, known_word
from pipeline.ports.control import AskedPause, Bands, Override
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.queries import query


def load_pauses(sink: PostgresSink) -> list[AskedPause]:
    """All saved pauses, including reasons that this version does not know. Raises SinkUnavailableError."""
    found = [(*row, None) for row in sink.session.rows(query("load_pauses"))]
    found += sink.session.rows(query("load_partition_pauses"))
    reasons = {word: known_word(PauseReason, word) for word, *_ in found}
    return [
        AskedPause(reasons[word], by, why, since, partition, word if reasons[word] is PauseReason.UNKNOWN else "")
        for word, by, why, since, partition in found
    ]


def save_pause(sink: PostgresSink, pause: AskedPause, evidence: dict[str, Any] | None = None) -> None:
    """Save a pause; an already saved one stays as it is. Raises SinkUnavailableError.

    `evidence` is the reason why a partition stopped, for people: see `pause_evidence`.
    """
    sink.session.count(
        query("save_pause" if pause.partition is None else "save_partition_pause"),
        {
            "reason": pause.name,
            "partition": pause.partition,
            "paused_by": pause.by.replace("\0", ""),
            "why": pause.why.replace("\0", ""),
            "since": pause.since,
            "evidence": None if evidence is None else json.dumps(evidence).replace("\\u0000", "\\ufffd"),
        },
    )


def delete_pause(sink: PostgresSink, name: str, partition: int | None = None) -> bool:
    """Delete a pause by its reason's name, of the whole system or of a partition; returns whether there was one.

    Raises SinkUnavailableError.
    """
    statement = query("delete_pause" if partition is None else "delete_partition_pause")
    return sink.session.count(statement, {"reason": name, "partition": partition}) > 0


def pause_evidence(sink: PostgresSink, reason: PauseReason, partition: int) -> dict[str, Any] | None:
    """The evidence that was saved with a partition's pause; None if there is none.

    Raises SinkUnavailableError.
    """
    for (evidence,) in sink.session.rows(query("pause_evidence"), {"reason": reason.value, "partition": partition}):
        found: dict[str, Any] | None = evidence
        return found
    return None


def load_override(sink: PostgresSink) -> Override | None:
    """The saved override, if its time is not up. Raises SinkUnavailableError."""
    for rate, until, by, why, since in sink.session.rows(query("load_override")):
        return Override(rate, until, by, why, since)
    return None


def save_override(sink: PostgresSink, override: Override) -> None:
    """Save an override; it replaces an earlier one. Raises SinkUnavailableError."""
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
    """Delete the override. Raises SinkUnavailableError."""
    sink.session.count(query("delete_override"))


def load_bands(sink: PostgresSink) -> Bands | None:
    """The saved bands; None if those of the settings apply. Raises SinkUnavailableError."""
    for rate_max, rate_min, degraded, critical, by, why, since in sink.session.rows(query("load_bands")):
        return Bands(rate_max, rate_min, degraded, critical, by, why, since)
    return None


def save_bands(sink: PostgresSink, bands: Bands) -> None:
    """Save bands; they replace earlier ones. Raises SinkUnavailableError."""
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
    """Delete the bands. Raises SinkUnavailableError."""
    sink.session.count(query("delete_bands"))
