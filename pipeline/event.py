"""The event, and its record in the log.

A record is the event's JSON with three more fields: `eventId` always present, `receivedAt` (epoch milliseconds, set at
ingest) and `requestId`, that of the HTTP request. It is JSON so that any other consumer of the topic can read it.
"""

from typing import Final
from zlib import crc32

import msgspec

AttributeValue = str | int | float | bool

CORRELATION_ID_CHARS_MAX: Final = 128
SOURCE_CHARS_MAX: Final = 256
EVENT_ID_CHARS_MAX: Final = 64
MESSAGE_BYTES_MAX: Final = 64 * 1024  # as UTF-8
ATTRIBUTES_KEYS_MAX: Final = 64
ATTRIBUTES_BYTES_MAX: Final = 8 * 1024  # as compact JSON in UTF-8
# A record in the log, at most: JSON writes a control character of a text in six bytes, and a character of up to four.
# The attributes are limited as JSON already. The rest is the names of the fields, the severity and the numbers.
RECORD_BYTES_MAX: Final = (
    6 * (MESSAGE_BYTES_MAX + CORRELATION_ID_CHARS_MAX + SOURCE_CHARS_MAX + EVENT_ID_CHARS_MAX)
    + ATTRIBUTES_BYTES_MAX
    + 1024
)
TIMESTAMP_MS_MIN: Final = 0  # 1970-01-01
TIMESTAMP_MS_MAX: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

SEVERITIES: Final = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
SEVERITY_ALIASES: Final = {"WARNING": "WARN", "CRITICAL": "FATAL"}


class Event(msgspec.Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """An event as a client sends it. Decoding checks types; `ingest.codecs` checks rules."""

    correlation_id: str
    severity: str
    message: str
    source: str
    timestamp: int  # epoch milliseconds
    event_id: str | None = None
    attributes: dict[str, AttributeValue] | None = None


class RecordedEvent(msgspec.Struct, rename="camel"):
    """An event read back from the log. Unknown fields are ignored, so that a newer ingest may add some."""

    correlation_id: str
    severity: str
    message: str
    source: str
    timestamp: int
    event_id: str
    received_at: int  # epoch milliseconds
    attributes: dict[str, AttributeValue] | None = None
    request_id: str | None = None  # None: written before requests had ids


def content_of(event: Event | RecordedEvent) -> tuple[object, ...]:
    """The content that PostgreSQL compares for two events with one id. The receive time is not part of it.

    In Python true and 1 are equal, in jsonb they are not; 1 and 1.0 are equal in both.
    """
    attributes = event.attributes
    return (
        event.correlation_id,
        event.severity,
        event.message,
        event.source,
        event.timestamp,
        None if attributes is None else {key: (value, isinstance(value, bool)) for key, value in attributes.items()},
    )


def is_repeat(stored: RecordedEvent, later: RecordedEvent) -> bool:
    """Whether a later event with the same id is the stored one, sent again.

    An event without a time has that of its receipt, which is another one when it is sent again. Clients set earlier
    times, so a time that is not before the receipt counts as that of the receipt.
    """
    if min(stored.timestamp - stored.received_at, later.timestamp - later.received_at) >= 0:
        later = msgspec.structs.replace(later, timestamp=stored.timestamp)
    return content_of(stored) == content_of(later)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RecordedEvent)


def record_head(received_at_ms: int, request_id: str) -> bytes:
    """The first bytes of the records of all events of a request. `request_id` needs no JSON escapes."""
    return b'{"receivedAt":%d,"requestId":"%b",' % (received_at_ms, request_id.encode("ascii"))


def encode_record(event: Event, head: bytes) -> bytes:
    """The log record of an event whose `event_id` is set; `head` is the result of `record_head`."""
    return head + _encoder.encode(event)[1:]


def decode_record(value: bytes) -> RecordedEvent:
    """Decode a log record. Raises msgspec.MsgspecError or UnicodeDecodeError if it is not one."""
    return _decoder.decode(value)


def partition_of(correlation_id: str, partitions: int) -> int:
    """The partition of a correlation id: the same in all processes and on all machines, unlike `hash()`."""
    return crc32(correlation_id.encode()) % partitions
