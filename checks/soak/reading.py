"""Reads all results of a run: rows, dead letters, offsets, and the whole log again."""

import contextlib
import sys
from typing import Any
from zlib import crc32

import msgspec
import psycopg2

from checks.soak.found import Found, Hole, Place, Stored
from checks.soak.history import digest, key_of
from checks.soak.rig import Rig
from pipeline import wiring
from pipeline.event import decode_record
from pipeline.ports.log import EventLog

ROWS_AT_ONCE = 20_000
RECORDS_AT_ONCE = 5_000


def read_found(rig: Rig) -> Found:
    """Read everything directly from the servers. Call this only after all writes have ended."""
    log = wiring.make_log(rig.direct)
    try:
        found = Found(log_id=log.identity().log_id, trims=rig.direct.log_trim and rig.options.log == "redis")
        _read_log(log, found)
    finally:
        log.close()
    found.stored_offsets = rig.stored_offsets()
    found.rows = [*_rows(rig)]
    found.letters = [*_letters(rig)]
    return found


def stored_of(value: bytes, place: Place) -> Stored:
    """A record of the log as the checker's type."""
    try:
        event = decode_record(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Stored(place, "", "", "")
    content = digest(
        event.correlation_id, event.severity, event.message, event.source, event.timestamp, attributes=event.attributes
    )
    return Stored(
        place,
        key_of(event.message),
        content,
        event.event_id,
        request_id=sys.intern(event.request_id or ""),
        received_at=event.received_at / 1000,
        hash=crc32(event.correlation_id.encode()),
    )


def _read_log(log: EventLog, found: Found) -> None:
    """Every record of every partition, and the holes between them."""
    records: list[Stored] = []
    holes: list[Hole] = []
    for position in log.positions():
        partition, offset = position.partition, position.begin
        # If the log never trims, missing records at the start are a hole.
        found.begins[partition] = offset if found.trims else min(offset, 0)
        if offset > 0 and not found.trims:
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
            "       (extract(epoch FROM event_time) * 1000)::bigint, attributes, log_partition, log_offset, "
            "       log_id, request_id, extract(epoch FROM received_at)::float8, "
            "       extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 "
            "FROM log_events"
        )
        for row in cursor:
            event_id, correlation_id, severity, message, source, at_ms, attributes, partition, offset, *added = row
            log_id, request_id, received_at, stored_at = added
            yield Stored(
                Place(partition, offset),
                key_of(message),
                digest(correlation_id, severity, message, source, at_ms, attributes=attributes),
                event_id,
                request_id=sys.intern(request_id or ""),
                received_at=received_at,
                hash=crc32(correlation_id.encode()),
                log_id=sys.intern(log_id),
                stored_at=stored_at,
            )


def _letters(rig: Rig) -> Any:
    with contextlib.closing(_connection(rig)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT log_partition, log_offset, raw, log_id, sqlstate, extract(epoch FROM created_at)::float8 "
            "FROM dead_letters WHERE replayed_at IS NULL"
        )
        for partition, offset, raw, log_id, sqlstate, at in cursor:
            letter = stored_of(bytes(raw), Place(partition, offset))
            yield letter._replace(log_id=log_id, sqlstate=sqlstate, stored_at=at)


def _connection(rig: Rig) -> Any:
    """A connection with a transaction, as a server-side cursor needs it."""
    return psycopg2.connect(rig.direct.database_url, connect_timeout=5)
