"""What partitions by day cost, and how long their changes hold up a drain: `python -m checks.bench.by_day`.

1. Rows/s of a COPY into the partitioned table, of a bare COPY that fills the same tables and indexes (the events, and
   then the ids, without the trigger), and of a COPY into one table. They take turns.
2. A table of `--rows` events is partitioned by day, while a drain stores all the time.
3. A day of a tenth as many events is dropped, while the drain stores all the time.

It prints the ratios, the times, and the longest batch of the drain before and during each change.
"""

import argparse
import contextlib
import logging
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg2

from checks.bench.drain import File, fresh_database, records_of
from checks.bench.machine import started
from checks.bench.process import cpu_seconds
from checks.testbed.database import ask
from pipeline.errors import SinkUnavailableError
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.queries import query
from pipeline.sink.retention import PostgresRetention
from pipeline.sink.rows import RowEncoder, copy_chunks, place_columns
from stack.servers import Server, free_port, postgres_server

BATCH_RECORDS: Final = 5000  # DRAIN_BATCH_RECORDS_MAX
DRAIN_RECORDS: Final = 500  # of a batch of the drain that is beside the changes
USUAL_SECONDS: Final = 5.0  # how long the drain runs before each change
DAYS: Final = 30
_COPY_IDS: Final = "COPY event_ids (event_id) FROM STDIN"
# As records_of makes events, but by PostgreSQL, which is faster. Half of them have ids that are not ordered by time.
_FILL: Final = """
INSERT INTO {table} (event_id, correlation_id, severity, message, source, event_time, received_at, attributes, log_id,
                     log_partition, log_offset, request_id, stored_at)
SELECT CASE WHEN number % 2 = 0 THEN md5(number::text) ELSE to_char(number, 'FM000000000000') || md5('x') END,
       'order-' || number % 1000, 'INFO',
       'PacketResponder ' || number || ' for block blk_38865049064139660 terminating, status nominal',
       'hdfs/dfs.DataNode' || number % 20, now(), now(), '{{"attempt": 1, "host": "node-7"}}', 'filled', 0, number, 'r',
       {stored_at}
FROM generate_series({first}, {last}) AS number
"""
_WITHOUT_INDEXES: Final = """
ALTER TABLE log_events DROP CONSTRAINT log_events_pkey; DROP INDEX log_events_correlation_id, log_events_event_time
"""
_WITH_INDEXES: Final = """
ALTER TABLE log_events ADD PRIMARY KEY (event_id);
CREATE INDEX log_events_correlation_id ON log_events (correlation_id);
CREATE INDEX log_events_event_time ON log_events
    USING brin (event_time) WITH (pages_per_range = 32, autosummarize = on);
"""


def _copied(settings: Settings, rows: int, *, ids_too: bool) -> tuple[float, float]:
    """Rows/s of COPY and COMMIT in batches of the drain's size, and rows for each CPU-second of PostgreSQL's process.

    Their bytes are made beforehand.
    """
    encoder, records = RowEncoder(), records_of(0, rows)
    prepared = []
    for first in range(0, rows, BATCH_RECORDS):
        values = records[first : first + BATCH_RECORDS]
        chunks = list(copy_chunks(encoder.rows(values, place_columns("bench", 0), first, [], [])))
        ids = "".join(f"{msgspec.json.decode(value)['eventId']}\n" for value in values)
        prepared.append((chunks, [ids.encode()] if ids_too else []))
    with contextlib.closing(psycopg2.connect(settings.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
        connection.commit()
        backend = connection.info.backend_pid
        began, used = time.monotonic(), cpu_seconds(backend)
        for chunks, ids_of in prepared:
            cursor.copy_expert(query("copy_events"), File(chunks))
            if ids_of:
                cursor.copy_expert(_COPY_IDS, File(ids_of))
            connection.commit()
        return rows / (time.monotonic() - began), rows / (cpu_seconds(backend) - used)


def ratios(server: Server, rows: int, rounds: int) -> None:
    """Print the rates of the three ways, and the ratios of their rounds."""
    rates: dict[str, list[tuple[float, float]]] = {"by day": [], "bare": [], "one table": []}
    for _ in range(rounds):
        for way, found in rates.items():
            with fresh_database(server, Settings(), by_day=way != "one table") as fresh:
                if way == "bare":
                    ask(fresh.database_url, "ALTER TABLE log_events DISABLE TRIGGER log_events_ids")
                found.append(_copied(fresh, rows, ids_too=way == "bare"))
    for number, of_what in enumerate(("second", "second of PostgreSQL's CPU")):
        for way, found in rates.items():
            each = ", ".join(f"{one[number]:,.0f}" for one in found)
            print(
                f"COPY, {way}: {statistics.median(one[number] for one in found):,.0f} rows a {of_what} (rounds: {each})"
            )
        for way in ("bare", "one table"):
            shares = [one[number] / other[number] for one, other in zip(rates["by day"], rates[way], strict=True)]
            each = ", ".join(f"{one:.2f}" for one in shares)
            print(f"COPY by day / {way}, by {of_what}: {statistics.median(shares):.2f} (rounds: {each})", flush=True)


class Draining:
    """A drain that stores batches of new events, each with one repeat in a hundred, until the block ends."""

    def __init__(self, settings: Settings) -> None:
        self._sink = PostgresSink(settings)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._store, daemon=True)
        self.batches: list[tuple[float, float]] = []  # when it began, and its seconds
        self.failed: list[str] = []

    def _store(self) -> None:
        log_id, offset, earlier = uuid.uuid4().hex, 0, [b""]
        while not self._ends.is_set():
            values = records_of(offset, offset + DRAIN_RECORDS)
            if len(self.batches) % 10 == 9:  # the careful way: one batch in ten
                values[-5:] = earlier[:5]
            began = time.monotonic()
            try:
                self._sink.store(log_id, 0, offset, LogBatch(offset, values, None), before_commit=lambda: None)
            except SinkUnavailableError as error:
                self.failed.append(str(error))
                continue
            self.batches.append((began, time.monotonic() - began))
            offset, earlier = offset + len(values), values

    def __enter__(self) -> "Draining":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._sink.close()

    def longest(self, since: float, until: float) -> float:
        """The longest batch, in seconds, of those that ran at these times."""
        return max((took for began, took in self.batches if began + took > since and began < until), default=0.0)


@contextlib.contextmanager
def _measured(what: str, settings: Settings) -> Iterator[Draining]:
    with Draining(settings) as drain:
        time.sleep(USUAL_SECONDS)
        began = time.monotonic()
        yield drain
        ended = time.monotonic()
        time.sleep(1.0)
    usual = drain.longest(began - USUAL_SECONDS, began)
    print(
        f"{what}: {ended - began:.1f} s; longest batch of the drain {drain.longest(began, ended):.2f} s meanwhile, "
        f"and {usual:.2f} s before; it stored {len(drain.batches)} batches, and {len(drain.failed)} failed",
        flush=True,
    )
    for failure in drain.failed[:3]:
        print(f"  {failure}")


def _fill(settings: Settings, table: str, rows: int, *, first: int, stored_at: str) -> None:
    for start in range(first, first + rows, 500_000):
        last = min(start + 500_000, first + rows) - 1
        ask(settings.database_url, _FILL.format(table=table, first=start, last=last, stored_at=stored_at))


def changes(server: Server, rows: int) -> None:
    """Partition a table of `rows` events, and drop a day; print how long each took."""
    with fresh_database(server, Settings()) as settings:
        schema = PostgresSchema(settings)
        began = time.monotonic()
        ask(settings.database_url, _WITHOUT_INDEXES)  # quicker
        _fill(settings, "log_events", rows, first=0, stored_at="now()")
        ask(settings.database_url, _WITH_INDEXES)
        print(f"{rows:,} events are stored after {time.monotonic() - began:.0f} s", flush=True)
        with _measured(f"partitioned {rows:,} events by day", settings):
            said = schema.partition_by_day()
        print(f"  {said}")
        _check(settings)
        schema.set_retention(event_days=DAYS, letter_days=None)
        _add_day(settings, rows // 10, first=rows)
        with contextlib.closing(PostgresSink(settings)) as sink, _measured(f"dropped {rows // 10:,} events", settings):
            dropped: Any = None
            tries = 0
            while dropped is None:
                tries += 1
                with contextlib.suppress(SinkUnavailableError):
                    dropped = PostgresRetention(sink.session).drop_day()
        print(f"  {dropped}, in {tries} tries")
        _check(settings)


def _add_day(settings: Settings, rows: int, *, first: int) -> None:
    """A partition of a day that expired."""
    url = settings.database_url
    [(begins, ends)] = ask(
        url, "SELECT (day - interval '24 hours')::text, day::text FROM (SELECT date_trunc('day', now(), 'UTC') - "
        f"interval '{24 * (DAYS + 5)} hours' AS day) AS days"
    )  # fmt: skip
    # The table from before the days takes all earlier times: the day is cut out of it.
    [(until,)] = ask(url, "SELECT ends::text FROM day_bounds() WHERE begins = '-infinity'")
    ask(url, "ALTER TABLE log_events DETACH PARTITION log_events_before")
    ask(url, f"ALTER TABLE log_events ATTACH PARTITION log_events_before FOR VALUES FROM ('{ends}') TO ('{until}')")
    ask(url, f"CREATE TABLE log_events_old PARTITION OF log_events FOR VALUES FROM ('{begins}') TO ('{ends}')")
    _fill(settings, "log_events", rows, first=first, stored_at=f"timestamptz '{begins}'")
    ask(url, "CREATE UNIQUE INDEX ON log_events_old (event_id)")


def _check(settings: Settings) -> None:
    """Print how many events have no id, or one that another has too."""
    [(without, twice)] = ask(
        settings.database_url,
        "SELECT count(*) FILTER (WHERE noted.event_id IS NULL), count(*) - count(DISTINCT stored.event_id) "
        "FROM log_events AS stored LEFT JOIN event_ids AS noted USING (event_id)",
    )
    print(f"  {without} events without an id, {twice} stored twice", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m checks.bench.by_day", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="events of the table that changes (5,000,000)")
    parser.add_argument("--copy-rows", type=int, default=200_000, help="events of each COPY (200,000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of COPY (5)")
    parser.add_argument("--only", choices=("ratios", "changes"), help="only this part")
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s")  # what a change waits for
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = started(stack, postgres_server(Path(folder), free_port()))
        if asked.only != "changes":
            ratios(server, asked.copy_rows, asked.rounds)
        if asked.only != "ratios":
            changes(server, asked.rows)


if __name__ == "__main__":
    main()
