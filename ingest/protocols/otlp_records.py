"""Maps a log record of OpenTelemetry to an event, whatever its encoding. docs/protocols/otlp.md has the table."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from ingest.errors import BodyTooLargeError
from ingest.protocols.records import BatchBuilder, compact_json, event_of, fitting, id_of, severity_of
from pipeline.event import ATTRIBUTES_BYTES_MAX, MESSAGE_BYTES_MAX, SEVERITIES

RECORD_BYTES_MAX: Final = 8 * MESSAGE_BYTES_MAX  # of a longer one, large texts are not decoded: see the encodings
LARGE_ATTRIBUTE_BYTES: Final = 64 * 1024  # in such a record; an event has no room for it
NO_ROOM: Final = b" " * (ATTRIBUTES_BYTES_MAX + 1)  # instead of its value: so it is dropped, and counted
VALUES_MAX: Final = 4096  # of one record, its resource or its scope, with all values within values
STEP_BYTES: Final = 32 * 1024  # decoded in two milliseconds at most
STEP_RECORDS: Final = 20
# Each event has a copy of its resource's attributes. A few records with a large resource would need much memory.
COPIES_TIMES_MAX: Final = 4  # times the largest body

_SEVERITY_NUMBER_MAX: Final = 24
NUMBERS_A_SEVERITY: Final = 4  # 1 to 4 are TRACE, 5 to 8 DEBUG, and so on to 24
_NO_TRACE: Final = frozenset({"", "0" * 32})
_NO_SPAN: Final = frozenset({"", "0" * 16})


class UnmappableError(Exception):
    """The record can't become an event."""


class Budget:
    """Bounds the values of one record, since two bytes may be one value."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = VALUES_MAX

    def take(self, count: int) -> None:
        """Count values. Raises UnmappableError if there are too many."""
        self._left -= count
        if self._left < 0:
            raise UnmappableError(f"a record has more than {VALUES_MAX} values")


@dataclass(slots=True)
class Record:
    """The fields of a log record. Times are epoch nanoseconds, 0 if there is none; ids are hexadecimal."""

    time_ns: int = 0
    observed_ns: int = 0
    severity_number: int = 0
    severity_text: str = ""
    body: object = None
    attributes: dict[str, Any] = field(default_factory=dict)  # the mapping removes those that it uses
    dropped_attributes: int = 0
    flags: int = 0
    trace_id: str = ""
    span_id: str = ""
    event_name: str = ""


class Origin:
    """What the records of one scope have in common: the attributes of their resource and scope."""

    __slots__ = ("attributes", "bytes", "service", "session")

    def __init__(self, resource: dict[str, Any], scope: Iterable[tuple[str, Any]]) -> None:
        scope = tuple(scope)
        merged = {**resource, **dict(scope)}
        self.service = _text_of(merged.get("service.name"))
        self.session = _text_of(merged.get("session.id"))
        # A scope wins over its resource, and comes before it: what finds no room is of the resource.
        self.attributes = fitting(item for item in (*scope, *resource.items()) if item[0] != "service.name") or {}
        self.bytes = len(compact_json(self.attributes))


class RecordsBuilder:
    """Makes the events of one body."""

    def __init__(self, builder: BatchBuilder, records_max: int, bytes_max: int, received_ns: int) -> None:
        self._builder = builder
        self._records_max = records_max
        self._copies_left = COPIES_TIMES_MAX * bytes_max
        self._copies_max = self._copies_left
        self._received_ns = received_ns
        self._groups = 0
        self.problem = ""  # of the first rejected record

    def begin_group(self) -> None:
        """Count a resource or a scope. Raises BodyTooLargeError if there are too many: each may be without records."""
        self._groups += 1
        if self._groups > 2 * self._records_max:
            raise BodyTooLargeError(self._records_max, "events")

    def reject(self, problem: str) -> None:
        """Count a record that becomes no event. Raises BodyTooLargeError if there are too many records."""
        self.problem = self.problem or problem
        self._builder.rejected += 1
        if self._builder.rejected + len(self._builder.events) > self._records_max:
            raise BodyTooLargeError(self._records_max, "events")

    def add(self, record: Record, origin: Origin) -> None:
        """Add the event of a record. Raises BodyTooLargeError if there are too many."""
        self._copies_left -= origin.bytes
        if self._copies_left < 0:
            raise BodyTooLargeError(self._copies_max, "bytes")
        fields = record.attributes
        source = (_text_of(fields.pop("service.name", None)) if "service.name" in fields else "") or origin.service
        given_id = _text_of(fields.pop("log.record.uid", None)) if "log.record.uid" in fields else ""
        own = _of_record(record)
        severity = _severity(record, own)
        key = record.trace_id.lower()
        if key in _NO_TRACE:
            key = _text_of(fields.pop("session.id", None)) if "session.id" in fields else origin.session
        body = record.body
        if body is None:
            message = record.event_name
        else:
            message = body if isinstance(body, str) else compact_json(body)
            if record.event_name:
                own["event_name"] = record.event_name
        time_ns = record.time_ns or record.observed_ns
        event = event_of(
            message=message,
            severity=severity,
            source=source,
            time_ns=time_ns or self._received_ns,
            correlation_id=key or source,
            attributes=(*own.items(), *fields.items()),
            common=origin.attributes,
            event_id=id_of(given_id) if given_id else None,
        )
        self._builder.add(event, key=key or None, has_time=time_ns > 0)


def _of_record(record: Record) -> dict[str, object]:
    """The attributes of a record's own fields, as far as they say something."""
    own: dict[str, object] = {}
    if record.span_id and record.span_id not in _NO_SPAN:
        own["span_id"] = record.span_id.lower()
    if record.flags:
        own["trace_flags"] = record.flags
    if record.observed_ns and record.time_ns and record.observed_ns != record.time_ns:
        own["observed_time_ns"] = record.observed_ns
    if record.dropped_attributes:
        own["dropped_attributes_count"] = record.dropped_attributes
    return own


def _severity(record: Record, own: dict[str, object]) -> str:
    """The severity of a record. What it does not say goes to `own`: a finer number, and other words."""
    number, text = record.severity_number, record.severity_text
    if 0 < number <= _SEVERITY_NUMBER_MAX:
        step, rest = divmod(number - 1, NUMBERS_A_SEVERITY)
        severity: str = SEVERITIES[step]
        if rest:
            own["severity_number"] = number
    else:
        severity = severity_of(text) or "INFO"
        if number:
            own["severity_number"] = number
    if text and text.upper() != severity:
        own["severity_text"] = text
    return severity


def _text_of(value: object) -> str:
    """A text, or a number as a text; empty for anything else."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
