"""Lines that processes log."""

from dataclasses import dataclass

from pipeline.names import LOG_FORMATS, LOG_LEVELS
from pipeline.settings.field import setting


@dataclass(frozen=True, kw_only=True)
class LogLineSettings:
    """Which lines are logged, and in which form."""

    log_level: str = setting(
        "INFO",
        "The lowest level that is logged; DEBUG names each request and batch",
        choices=LOG_LEVELS,
        when="DEBUG to follow an event through the system, or to find a defect",
    )
    log_format: str = setting(
        "human",
        "Lines for people, or one JSON object a line",
        choices=LOG_FORMATS,
        when="json if a collector reads the lines",
    )
