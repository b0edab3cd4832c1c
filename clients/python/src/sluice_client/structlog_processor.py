"""A processor for structlog. It needs nothing of structlog."""

from collections.abc import Mapping, MutableMapping
from datetime import datetime
from typing import Any, Final

from sluice_client.client import Client
from sluice_client.exceptions import exception_attributes, raised

CORRELATION_KEYS: Final = ("correlation_id", "correlationId")
_FIELDS: Final = {"event", "level", "timestamp", "exc_info", *CORRELATION_KEYS}


class SluiceProcessor:
    """Sends each event, and passes it on unchanged: the processors after it write it wherever they do.

    Put it after the processors that add fields, and before the one that renders. The message is `event`, the severity
    `level` or the name of the method, the time `timestamp` if it is a number of seconds or an ISO time with a zone.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Queue an event."""
        given: Mapping[str, Any] = event_dict
        attributes = {key: value for key, value in given.items() if key not in _FIELDS}
        error = raised(given.get("exc_info"))
        if error is not None:
            attributes = exception_attributes(error) | attributes
        self._client.emit(
            str(given.get("event", "")),
            severity=str(given.get("level", method_name)),
            correlation_id=next((str(given[key]) for key in CORRELATION_KEYS if given.get(key)), None),
            attributes=attributes,
            timestamp_ms=_milliseconds(given.get("timestamp")),
        )
        return event_dict


def _milliseconds(value: object) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return int(value * 1000)
        except (ValueError, OverflowError):
            return None
    if isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return None
        return int(time.timestamp() * 1000) if time.tzinfo is not None else None
    return None
