"""Reads everything that a run has left: rows, dead letters, offsets, and the whole log once more."""

import contextlib
from typing import Any

import msgspec
import psycopg2

from faults.found import Found, Hole, Place, Stored
from faults.history import digest
from faults.rig import Rig
from pipeline import wiring
from pipeline.event import decode_record
from pipeline.ports.log import EventLog

ROWS_AT_ONCE = 20_000
RECORDS_AT_ONCE = 5_000


def read_found(rig: Rig) -> Found:
    """Read it all, from the servers themselves. Only once nothing is written any more."""
    log = wiring.make_log(rig.direct)
    try:
        found = Found(log_id=log.identity().log_id)
        _read_log(log, found)
    finally:
        log.close()
    found.stored_offsets = rig.stored_offsets()
    found.rows = [*_rows(rig)]
    found.letters = [*_letters(rig)]
    return found


def stored_of(value: bytes, place: Place) -> Stored:
    """A record of the log, in the checker's terms."""
    try:
        event = decode_record(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Stored(place, "", "", "")
    content = digest(
        event.correlation_id, event.severity, event.message, event.source, event.timestamp, attributes=event.attributes
    )
    return Stored(place, str((event.attributes or {}).get("key", "")), content, event.event_id)


def _read_log(log: EventLog, found: Found) -> None:
    """Every record of every partition, and the holes between them."""
    records: list[Stored] = []
    holes: list[Hole] = []
    for position in log.positions():
        partition, offset = position.partition, position.begin
        found.begins[partition] = min(offset, 0)  # the harness never trims: what is missing at the start is a hole
        if offset > 0:
            holes.append(Hole(partition, 0, offset, declared=False))
        while offset < position.end:
            batch = log.read(partition, offset, records_max=RECORDS_AT_ONCE, wait_seconds=2.0)
            if batch is None:
                holes.append(Hole(partition, offset, position.end, declared=False))
                break
            if batch.offset > offset:
                holes.append(Hole(partition, offset, batch.offset, declared=batch.gap_from is not None))
            records += [
                stored_of(value, Place(partition, batch.offset + index)) for index, value in enumerate(batch.values)
            ]
            offset = batch.next_offset
    found.log, found.holes = records, holes


def _rows(rig: Rig) -> Any:
    with contextlib.closing(_connection(rig)) as connection, connection.cursor("rows") as cursor:
        cursor.itersize = ROWS_AT_ONCE
        cursor.execute(
            "SELECT event_id, correlation_id, severity, message, source, "
            "       (extract(epoch FROM event_time) * 1000)::bigint, attributes, log_partition, log_offset "
            "FROM log_events"
        )
        for event_id, correlation_id, severity, message, source, at_ms, attributes, partition, offset in cursor:
            content = digest(correlation_id, severity, message, source, at_ms, attributes=attributes)
            key = str((attributes or {}).get("key", ""))
            yield Stored(Place(partition, offset), key, content, event_id)


def _letters(rig: Rig) -> Any:
    with contextlib.closing(_connection(rig)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT log_partition, log_offset, raw FROM dead_letters WHERE replayed_at IS NULL")
        for partition, offset, raw in cursor:
            yield stored_of(bytes(raw), Place(partition, offset))


def _connection(rig: Rig) -> Any:
    """A connection with a transaction, as a server-side cursor needs it."""
    return psycopg2.connect(rig.direct.database_url, connect_timeout=5)
