"""A sink for loguru. It needs nothing of loguru."""

from typing import Any, Final

from sluice_client.client import Client
from sluice_client.events import RANKS, add_extra, severity_named, severity_numbered
from sluice_client.exceptions import exception_attributes

CORRELATION_KEYS: Final = ("correlation_id", "correlationId")
_NAMED: Final = {*RANKS, "WARNING", "CRITICAL", "SUCCESS"}


class LoguruSink:
    """Sends each message: `logger.add(LoguruSink(client))`. `bind` and `contextualize` become attributes.

    The message is loguru's own, without the text of its format. A level of your own has the severity of its number.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, message: Any) -> None:
        """Queue a message of loguru: a text with `record`."""
        record: dict[str, Any] = message.record
        extra: dict[str, Any] = record["extra"]
        level = record["level"]
        attributes: dict[str, object] = {
            "logger": record["name"],
            "file": record["file"].name,
            "line": record["line"],
            "function": record["function"],
        }
        if record["exception"] is not None and record["exception"].value is not None:
            attributes |= exception_attributes(record["exception"].value)
        add_extra(attributes, ((key, value) for key, value in extra.items() if key not in CORRELATION_KEYS))
        self._client.emit(
            record["message"],
            severity=severity_named(level.name) if level.name in _NAMED else severity_numbered(level.no),
            correlation_id=next((str(extra[key]) for key in CORRELATION_KEYS if extra.get(key)), None),
            attributes=attributes,
            timestamp_ms=int(record["time"].timestamp() * 1000),
        )
