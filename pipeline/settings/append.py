"""Append: how ingest writes accepted events to the event log."""

from dataclasses import dataclass

from pipeline.settings.field import setting


@dataclass(frozen=True, kw_only=True)
class AppendSettings:
    """Groups of events, and what may wait for the log."""

    append_group_events_max: int = setting(
        500,
        "Most events of one append; larger appends block the server for longer",
        low=1,
        high=10_000,
        when="rarely. `./bench.sh --only M1,M2` shows its effect",
    )
    append_group_seconds_max: float = setting(
        0.002,
        "How long the first event of a group waits for further events",
        low=0.0,
        high=1.0,
        when="lower for less latency at low load, higher for less CPU time at high load",
    )
    append_buffer_events_max: int = setting(
        10_000,
        "Events that wait for the log in one process; above it 503",
        low=1,
        high=1_000_000,
        when="clients get 503 during short delays of the log: more memory, fewer refusals",
    )
    append_buffer_bytes_max: int = setting(
        32 << 20,
        "Bytes that wait for the log in one process; above it 503",
        low=1 << 20,
        high=1 << 30,
        when="as above, if events are large",
    )
    append_seconds_max: float = setting(
        1.0,
        "How long a request waits for its append; then 503",
        low=0.05,
        high=30,
        when="the log is slow or far away, and clients should wait instead of repeating",
    )
