"""Makes events of foreign records. Nothing that a record contains makes it impossible to store.

What does not fit is changed, and the change can be seen: NUL becomes U+FFFD, a text that is too long is cut and ends
with CUT_MARK, and the attribute DROPPED_KEY has the number of attributes that found no room.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from ingest.errors import BodyTooLargeError
from ingest.types import Batch, Response
from pipeline.event import (
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_KEYS_MAX,
    CORRELATION_ID_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    SEVERITIES,
    SOURCE_CHARS_MAX,
    TIMESTAMP_MS_MAX,
    TIMESTAMP_MS_MIN,
    AttributeValue,
    Event,
)

DROPPED_KEY: Final = "sluice.dropped_attributes"
TIME_NS_KEY: Final = "time_ns"  # epoch nanoseconds, where these are not a whole number of milliseconds
CUT_MARK: Final = "…[cut]"
TOO_DEEP: Final = "[nested too deep]"  # instead of a value
UNKNOWN: Final = "unknown"  # source and correlation id of a record that names neither
KEY_CHARS_MAX: Final = 256  # of an attribute
KEYS_READ_MAX: Final = 1000  # of a record's attributes: those behind them have no room, and are only counted
COMMAS_A_RECORD_MAX: Final = 100  # on average; each stands for a value, which costs a parser fifty bytes
DEPTH_MAX: Final = 8  # objects within objects that become dotted keys; what is deeper stays JSON
NS_A_MS: Final = 1_000_000
HASHED_A_STEP: Final = 1 << 20  # bytes: a millisecond
IDS_A_STEP: Final = 2000  # half a millisecond

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_MESSAGE_CHARS_SURE: Final = MESSAGE_BYTES_MAX // 4  # no character has more than four bytes
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DROPPED_BYTES: Final = len(DROPPED_KEY) + 16  # of that attribute as JSON

_NONE: Final[Mapping[str, AttributeValue]] = {}

_encode = msgspec.json.encode


def event_of(
    *,
    message: str,
    severity: str,
    source: str,
    time_ns: int,
    correlation_id: str = "",
    attributes: Iterable[tuple[str, object]] = (),
    common: Mapping[str, AttributeValue] = _NONE,
    event_id: str | None = None,
) -> Event:
    """The event of a record. Texts may have any length and content, and `attributes` any values.

    `time_ns` is in epoch nanoseconds. `severity` is one of SEVERITIES. Attributes are kept from the first to the last
    as long as there is room; a later one with the key of an earlier one is dropped without being counted. `common`
    comes after them: attributes of several records, which `fitting` made once.
    """
    source = short_text(source, SOURCE_CHARS_MAX) or UNKNOWN
    ms, rest = divmod(time_ns, NS_A_MS)
    if not TIMESTAMP_MS_MIN <= ms <= TIMESTAMP_MS_MAX:
        ms = min(max(ms, TIMESTAMP_MS_MIN), TIMESTAMP_MS_MAX)
        rest = 0
    return Event(
        short_text(correlation_id, CORRELATION_ID_CHARS_MAX) or source[:CORRELATION_ID_CHARS_MAX],
        severity,
        message_text(message),
        source,
        ms,
        event_id,
        fitting(attributes, time_ns if rest else None, common),
    )


def short_text(text: str, chars_max: int) -> str:
    """A text without NUL and surrogates, of at most `chars_max` characters."""
    if len(text) > chars_max:
        text = text[: chars_max - len(CUT_MARK)] + CUT_MARK
    return text if text.isascii() and "\0" not in text else _storable(text)


def message_text(text: str) -> str:
    """A text without NUL and surrogates, of at most MESSAGE_BYTES_MAX bytes."""
    if not text.isascii() or "\0" in text:
        text = _storable(text)
    if len(text) > _MESSAGE_CHARS_SURE:
        encoded = text.encode()
        if len(encoded) > MESSAGE_BYTES_MAX:
            mark = CUT_MARK.encode()
            return encoded[: MESSAGE_BYTES_MAX - len(mark)].decode(errors="ignore") + CUT_MARK
    return text


def _storable(text: str) -> str:
    """PostgreSQL stores no NUL, and UTF-8 has no surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def fitting(
    attributes: Iterable[tuple[str, object]],
    time_ns: int | None = None,
    common: Mapping[str, AttributeValue] = _NONE,
) -> dict[str, AttributeValue] | None:
    """As many of the attributes as an event may have, from the first to the last; None if there are none.

    Objects become dotted keys, and arrays compact JSON. An attribute without a value (None) is dropped.
    """
    kept: dict[str, AttributeValue] = {} if time_ns is None else {TIME_NS_KEY: _value(time_ns)}
    unread = 0
    for key, value in attributes:
        if len(kept) >= KEYS_READ_MAX:
            unread += 1
        elif (
            type(value) is str
            and value.isascii()
            and "\0" not in value
            and len(key) <= KEY_CHARS_MAX
            and key.isascii()
            and "\0" not in key
        ):
            kept.setdefault(key, value)  # what `_add` does, for most attributes
        else:
            _add(kept, key, value, 0)
    for key, one in common.items():
        kept.setdefault(key, one)
    if not kept:
        return None
    if len(kept) <= ATTRIBUTES_KEYS_MAX and len(_encode(kept)) <= ATTRIBUTES_BYTES_MAX:
        return kept
    return _cut(kept, unread)


def _add(kept: dict[str, AttributeValue], key: str, value: object, depth: int) -> None:
    kind = type(value)
    if kind is dict and value and depth < DEPTH_MAX:
        for name, inner in value.items():  # type: ignore[attr-defined]
            _add(kept, f"{key}.{name}", inner, depth + 1)
        return
    key = short_text(key, KEY_CHARS_MAX)
    if value is None or key in kept:
        return
    kept[key] = _value(value)


def _value(value: object) -> AttributeValue:
    """A value that JSON, PostgreSQL and other readers keep as it is."""
    match value:
        case str():
            return value if value.isascii() and "\0" not in value else _storable(value)
        case bool():
            return value
        case int():
            return value if _INT64_MIN <= value <= _INT64_MAX else str(value)
        case float():
            is_kept = math.isfinite(value) and (value != 0 or math.copysign(1, value) > 0)  # PostgreSQL has no -0.0
            return value if is_kept else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case _:
            return _storable(compact_json(value))


def _cut(attributes: dict[str, AttributeValue], unread: int) -> dict[str, AttributeValue]:
    """The attributes that find room, and the number of those that do not; `unread` more were not looked at."""
    kept: dict[str, AttributeValue] = {}
    earlier = attributes.pop(DROPPED_KEY, 0)  # of attributes that several records share, and that were cut before
    room = ATTRIBUTES_BYTES_MAX - 2 - _DROPPED_BYTES
    for key, value in attributes.items():
        size = len(_encode(key)) + len(_encode(value)) + 2
        if len(kept) < ATTRIBUTES_KEYS_MAX - 1 and size <= room:
            kept[key] = value
            room -= size
    dropped = len(attributes) - len(kept) + unread
    kept[DROPPED_KEY] = dropped + earlier if isinstance(earlier, int) else dropped
    return kept


def compact_json(value: object) -> str:
    """A value as JSON without blanks; what JSON does not have becomes text."""
    try:
        try:
            return _encode(value, enc_hook=str).decode()
        except UnicodeEncodeError:  # halves of surrogate pairs: they stay escaped
            return json.dumps(value, separators=(",", ":"), default=str)
    except RecursionError:  # decoding needs less room than encoding
        return TOO_DEEP


# --- Time ---------------------------------------------------------------------------------------------------------


def time_ns_of(value: object) -> int | None:
    """Epoch nanoseconds of a time; None if it is none.

    A number, also as text, is seconds, milliseconds, microseconds or nanoseconds by its size: in each of these units,
    the years 1973 to 5138 have no number in common. A text is RFC 3339, or like it; without a zone it is UTC.
    """
    if isinstance(value, str):
        value = value.strip()
        if value.isdecimal():
            value = int(value) if len(value) <= 20 else None
        else:
            return _ns_of_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        if not math.isfinite(value) or not 0 <= value < 1e19:
            return None
        whole = int(value)
        # The digits that the client wrote, not the binary value.
        digits = repr(value).partition(".")[2]
        fraction = int(digits[:9].ljust(9, "0")) if digits.isdecimal() else 0
    else:
        whole, fraction = value, 0
    if whole < 0:
        return None
    for limit, factor in ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3), (10**20, 1)):
        if whole < limit:
            return whole * factor + fraction * factor // 10**9
    return None


def _ns_of_text(text: str) -> int | None:
    try:
        number = float(text) if text[:1].isdigit() and "-" not in text and ":" not in text else None
    except ValueError:
        return None
    if number is not None:
        return time_ns_of(number)
    text = text.replace(",", ".", 1)  # Python's logging writes 12:00:00,123
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    parsed = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
    microseconds = (parsed - _EPOCH) // timedelta(microseconds=1)
    return microseconds * 1000 + _beyond_microseconds(text) if microseconds >= 0 else None


def _beyond_microseconds(text: str) -> int:
    """The nanoseconds that datetime does not keep: the digits 7 to 9 of a fraction."""
    _, point, rest = text.partition(".")
    if not point:
        return 0
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return int(digits[6:9].ljust(3, "0")) if len(digits) > 6 else 0


# --- Severity -----------------------------------------------------------------------------------------------------

_OF_WORD: Final = {
    "trace": "TRACE", "finest": "TRACE", "finer": "TRACE", "verbose": "TRACE", "silly": "TRACE", "all": "TRACE",
    "debug": "DEBUG", "fine": "DEBUG", "dbg": "DEBUG", "config": "DEBUG",
    "info": "INFO", "information": "INFO", "informational": "INFO", "notice": "INFO", "success": "INFO", "log": "INFO",
    "ok": "INFO", "http": "INFO", "default": "INFO",
    "warn": "WARN", "warning": "WARN", "wrn": "WARN",
    "error": "ERROR", "err": "ERROR", "severe": "ERROR", "eror": "ERROR", "exception": "ERROR",
    "fatal": "FATAL", "critical": "FATAL", "crit": "FATAL", "alert": "FATAL", "emerg": "FATAL", "emergency": "FATAL",
    "panic": "FATAL", "off": "FATAL",
}  # fmt: skip
_OF_SYSLOG: Final = ("FATAL", "FATAL", "FATAL", "ERROR", "WARN", "INFO", "INFO", "DEBUG")  # 0 emergency to 7 debug


def severity_of(value: object) -> str | None:
    """The severity that a level means: a word, or a number of pino (10 to 60) or syslog (0 to 7); None if none."""
    if isinstance(value, str):
        word = value.strip().lower()
        known = _OF_WORD.get(word)
        if known is not None or not word.isdecimal() or len(word) > 3:
            return known
        value = int(word)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value < 10:
        return severity_of_syslog(int(value)) if value >= 0 else None
    return SEVERITIES[int(value) // 10 - 1] if value < 70 else None


def severity_of_syslog(level: int) -> str | None:
    """The severity of a syslog level, 0 to 7 (RFC 5424); None for other numbers."""
    return _OF_SYSLOG[level] if 0 <= level < len(_OF_SYSLOG) else None


# --- Ids ----------------------------------------------------------------------------------------------------------


def id_of(text: str) -> str:
    """The event id for an id that a protocol has, of any length."""
    if 0 < len(text) <= 64 and text.isascii() and text.isprintable():
        return text
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=20).hexdigest()


class BatchBuilder:
    """Collects the events of one body. `beside` is what determines them beside it, such as an index in the address."""

    def __init__(self, body: bytes, records_max: int, beside: str = "") -> None:
        self.body = body
        self._beside = beside
        self._records_max = records_max
        self._has_time = False
        self._keys: list[str] = []
        self.events: list[Event] = []
        self.rejected = 0  # records that became no event

    def add(self, event: Event, *, key: str | None, has_time: bool) -> None:
        """Add an event. Raises BodyTooLargeError if there are too many.

        Events with the same `key` keep their order. Without a key, the events of a body are spread over all partitions.
        `has_time`: the record has a time of its own.
        """
        self.check_room(1)
        index = len(self.events)
        self.events.append(event)
        self._keys.append(key or f"{event.correlation_id}#{index}")
        self._has_time = self._has_time or has_time

    def reject(self) -> None:
        """Count a record that becomes no event. Raises BodyTooLargeError if there are too many records."""
        self.check_room(1 + self.rejected)
        self.rejected += 1

    def check_commas(self, body: bytes) -> None:
        """Raise BodyTooLargeError if JSON has so many values that parsing takes hundreds of megabytes."""
        if body.count(b",") > COMMAS_A_RECORD_MAX * self._records_max:
            raise BodyTooLargeError(self._records_max, "events")

    def check_room(self, count: int) -> None:
        """Raise BodyTooLargeError if `count` more events are too many."""
        if len(self.events) + count > self._records_max:
            raise BodyTooLargeError(self._records_max, "events")

    def check_groups(self, count: int) -> None:
        """Raise BodyTooLargeError if `count` groups of records are too many: each may be without records."""
        if count > self._records_max:
            raise BodyTooLargeError(self._records_max, "events")

    def build(self, accepted: Callable[[], Response]) -> Generator[None, None, Batch]:
        """The batch, in steps.

        An event without an id gets one that is made of the body and its index: the same body, sent again, stores
        nothing twice. A body without any time may be sent twice on purpose: its events get random ids later.
        """
        if self._has_time:
            hashed = hashlib.blake2b(self._beside.encode("utf-8", "replace") + b"\0", digest_size=16)
            for start in range(0, len(self.body), HASHED_A_STEP):
                hashed.update(memoryview(self.body)[start : start + HASHED_A_STEP])
                yield
            digest = hashed.hexdigest()
            for index, event in enumerate(self.events):
                if event.event_id is None:
                    event.event_id = f"{digest}-{index}"
                if index % IDS_A_STEP == IDS_A_STEP - 1:
                    yield
        return Batch(self.events, accepted, self._keys, self.rejected)
