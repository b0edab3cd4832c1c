"""Makes events that the server accepts, whatever a program hands over.

A text that is too long is cut and ends with CUT_MARK. NUL and halves of surrogate pairs become U+FFFD and "?". The
attribute DROPPED_KEY has the number of attributes that found no room.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Final

SEVERITIES: Final = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")  # from the lowest to the highest
RANKS: Final = {name: rank for rank, name in enumerate(SEVERITIES)}
LEVELS: Final = (0, 0, 1, 2, 3, 3)  # of the server's admission, by rank: TRACE has that of DEBUG, FATAL that of ERROR
_ALIASES: Final = {
    "WARNING": "WARN",
    "CRITICAL": "FATAL",
    "SUCCESS": "INFO",  # loguru's, between INFO and WARNING
    "EXCEPTION": "ERROR",  # structlog's method
}

# The limits of the HTTP contract.
CORRELATION_ID_CHARS_MAX: Final = 128
SOURCE_CHARS_MAX: Final = 256
MESSAGE_BYTES_MAX: Final = 64 * 1024
ATTRIBUTES_KEYS_MAX: Final = 64
ATTRIBUTES_BYTES_MAX: Final = 8 * 1024 - 256  # the server's encoder may write a number a little longer
TIMESTAMP_MS_MIN: Final = 100_000_000_000  # 1973
TIMESTAMP_MS_MAX: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

CUT_MARK: Final = "…[cut]"
DROPPED_KEY: Final = "sluice.dropped_attributes"
EXTRA_PREFIX: Final = "extra."  # of what a program calls `file` or `line`, as the client calls the place of a record
KEY_CHARS_MAX: Final = 256
KEYS_READ_MAX: Final = 1000  # of one event's attributes: those behind them find no room, and are only counted
DEPTH_MAX: Final = 8  # objects within objects that become dotted keys; what is deeper stays JSON
_DROPPED_BYTES: Final = len(DROPPED_KEY) + 16  # of that attribute as JSON

AttributeValue = str | int | float | bool

encode_json: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def severity_named(name: str) -> str:
    """The severity with this name, in any case; INFO for a name that is not known."""
    upper = name.upper()
    return upper if upper in RANKS else _ALIASES.get(upper, "INFO")


def severity_numbered(number: float) -> str:
    """The severity of a number in steps of 10, as in the standard library: 10 is DEBUG, 50 is FATAL."""
    return SEVERITIES[min(max(int(number // 10), 0), len(SEVERITIES) - 1)]


def line_of(
    *,
    event_id: str,
    correlation_id: str,
    severity: str,
    message: str,
    source: str,
    timestamp_ms: int,
    attributes: Mapping[str, object] | None = None,
) -> bytes:
    """An event as one line of NDJSON, without the line feed. `severity` is one of SEVERITIES."""
    event: dict[str, object] = {
        "eventId": event_id,
        "correlationId": short_text(correlation_id, CORRELATION_ID_CHARS_MAX) or "unknown",
        "severity": severity,
        "message": message_text(message),
        "source": short_text(source, SOURCE_CHARS_MAX) or "unknown",
        "timestamp": min(max(timestamp_ms, TIMESTAMP_MS_MIN), TIMESTAMP_MS_MAX),
    }
    if attributes:
        event["attributes"] = fitting(attributes.items())
    return encode_json(event).encode()


def add_extra(attributes: dict[str, object], extra: Iterable[tuple[str, object]]) -> None:
    """Add what a program gave a record. A key that is in use gets EXTRA_PREFIX: neither value is lost."""
    for key, value in extra:
        attributes[f"{EXTRA_PREFIX}{key}" if key in attributes else key] = value


def short_text(text: str, chars_max: int) -> str:
    """A text that can be stored, of at most `chars_max` characters."""
    if len(text) > chars_max:
        text = text[: chars_max - len(CUT_MARK)] + CUT_MARK
    return _storable(text)


def message_text(text: str) -> str:
    """A text that can be stored, of at most MESSAGE_BYTES_MAX bytes."""
    text = _storable(text)
    if len(text) > MESSAGE_BYTES_MAX // 4:  # no character has more than four bytes
        encoded = text.encode()
        if len(encoded) > MESSAGE_BYTES_MAX:
            mark = CUT_MARK.encode()
            return encoded[: MESSAGE_BYTES_MAX - len(mark)].decode(errors="ignore") + CUT_MARK
    return text


def last_part(text: str, bytes_max: int) -> str:
    """The end of a text, of at most `bytes_max` bytes. A traceback has the most important part at its end."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return text
    return "[cut]…" + encoded[len(encoded) - bytes_max + len("[cut]…".encode()) :].decode(errors="ignore")


def _storable(text: str) -> str:
    """PostgreSQL stores no NUL, and UTF-8 has no surrogates."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def fitting(attributes: Iterable[tuple[str, object]]) -> dict[str, AttributeValue]:
    """As many of the attributes as an event may have, from the first to the last.

    Objects become dotted keys, and lists compact JSON. Other values become text. An attribute without a value (None) is
    left out.
    """
    kept: dict[str, AttributeValue] = {}
    unread = sum(_add(kept, key, value, "", 0) for key, value in attributes)
    if len(kept) <= ATTRIBUTES_KEYS_MAX and _size(kept) <= ATTRIBUTES_BYTES_MAX:
        return kept
    found: dict[str, AttributeValue] = {}
    room = ATTRIBUTES_BYTES_MAX - 2 - _DROPPED_BYTES
    for key, one in kept.items():
        size = _size(key) + _size(one) + 2
        if len(found) < ATTRIBUTES_KEYS_MAX - 1 and size <= room:
            found[key] = one
            room -= size
    found[DROPPED_KEY] = len(kept) - len(found) + unread
    return found


def _size(value: object) -> int:
    return len(encode_json(value).encode())


def _add(kept: dict[str, AttributeValue], name: object, value: object, prefix: str, depth: int) -> int:
    """Keep an attribute, or those of an object; returns how many were not read (an object counts as one)."""
    if len(kept) >= KEYS_READ_MAX:
        return 1
    key = prefix + _text_of(name)
    if isinstance(value, Mapping) and value and depth < DEPTH_MAX:
        return sum(_add(kept, inner, one, f"{key}.", depth + 1) for inner, one in value.items())
    key = short_text(key, KEY_CHARS_MAX)
    if value is not None and key not in kept:
        kept[key] = _value(value)
    return 0


def _value(value: object) -> AttributeValue:
    """A value that JSON and PostgreSQL keep as it is. An IntEnum becomes its number."""
    match value:
        case str():
            return _storable(str.__str__(value))
        case bool():
            return value
        case int():
            return int(value) if -(2**63) <= value < 2**63 else _text_of(int(value))
        case float():
            is_kept = math.isfinite(value) and (value != 0 or math.copysign(1, value) > 0)  # PostgreSQL has no -0.0
            return float(value) if is_kept else str(float(value))
        case list() | tuple() | set() | frozenset() | Mapping():
            return _storable(_compact_json(value))
        case _:
            return _storable(_text_of(value))


def _compact_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_text_of)
    except (ValueError, TypeError, RecursionError):  # a circle, a key that is no text, too deep
        return _text_of(value)


def _text_of(value: object) -> str:
    """The text of any object, also of one whose own conversion fails."""
    try:
        return str(value)
    except Exception:  # foreign code
        return f"<{type(value).__name__}>"
