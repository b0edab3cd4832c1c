"""M7, M8: rows a second that `drain` stores exactly once, against a plain COPY of the same rows and a read of the log.

M7: each round gets an empty database and a prefilled log, and the three take turns. The goal is a share of the slower
baseline, since a drain can be no faster than either. M8: the same COPY and drain into a table that already holds
events, and a drain of a long backlog. All of them have the whole machine. COPY's rows are made beforehand. By day, a
drain into one table takes its turn too.
"""

import contextlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psycopg2
import redis
import uuid_utils

from checks.bench.machine import Options, started
from checks.bench.process import cpu_seconds, own_cpu_seconds
from checks.bench.table import Line, at_least, ratios
from checks.testbed.waiting import wait_until
from pipeline import wiring
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.drain import drain
from pipeline.drain.report import DrainReport
from pipeline.event import Event, encode_record, record_head
from pipeline.ports.log import EventLog, LogBatch
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema, migrate
from pipeline.sink.queries import query
from pipeline.sink.rows import RowEncoder, copy_chunks, place_columns
from stack.servers import Server, free_port, kafka_server, postgres_server, redis_server

PARTITION: Final = 0
APPEND_AT_ONCE: Final = 1000
PIECE_ROWS: Final = 100_000  # made, sent and discarded together
TRIED_ROWS: Final = 100_000  # stored twice in each round of M8: few, so that the table keeps about its stated size
FULL_ROUNDS_MAX: Final = 3  # of M8 with --full
SHORT_ROUNDS: Final = 3  # of M8 without it, for each round of the others: one stall of 0.2 s halves a drain of 0.4 s
_SIZES: Final = """
WITH tables AS (
    SELECT 'log_events'::regclass AS oid UNION SELECT 'event_ids' UNION
    SELECT relid FROM pg_partition_tree('log_events')
)
SELECT (SELECT count(*) FROM log_events), sum(pg_table_size(oid))::bigint, sum(pg_indexes_size(oid))::bigint FROM tables
"""


def records_of(first: int, end: int) -> list[bytes]:
    """Records of events with these numbers; ids are new with every call."""
    return [
        encode_record(
            Event(
                correlation_id=f"order-{number % 1000}",
                severity=("INFO", "WARN", "ERROR")[number % 3],
                message=f"PacketResponder {number} for block blk_38865049064139660 terminating, status nominal",
                source=f"hdfs/dfs.DataNode{number % 20}",
                timestamp=1_700_000_000_000 + number,
                event_id=str(uuid_utils.uuid7()),
                attributes={"attempt": number % 5, "host": "node-7"},
            ),
            record_head(1_700_000_000_000 + number, f"0123456789ab-{number}"),
        )
        for number in range(first, end)
    ]


def pieces(count: int) -> Iterator[list[bytes]]:
    """That many records, a piece at a time."""
    for first in range(0, count, PIECE_ROWS):
        yield records_of(first, min(count, first + PIECE_ROWS))


@contextlib.contextmanager
def fresh_database(
    server: Server, settings: Settings, *, by_day: bool = False, copied_from: Settings | None = None
) -> Iterator[Settings]:
    """An empty, migrated database, or a copy of another one.

    A checkpoint before it keeps one round's writes out of the next round's time.
    """
    name = f"bench_{uuid.uuid4().hex}"
    with contextlib.closing(psycopg2.connect(server.url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            place = server.url.rpartition("/")[0]
            fresh = replace(settings, database_url=f"{place}/{name}")
            if copied_from is not None:
                template = copied_from.database_url.removeprefix(f"{place}/")
                cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
            else:
                cursor.execute(f"CREATE DATABASE {name}")
                migrate(fresh)
                if by_day:
                    PostgresSchema(fresh).partition_by_day()
            cursor.execute("CHECKPOINT")
            yield fresh
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


class File:
    """The file that copy_expert reads."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = iter(chunks)

    def read(self, _size: int = -1) -> bytes:
        return next(self._chunks, b"")

    readline = read


def plain_copy(settings: Settings, some: Iterable[list[bytes]]) -> float:
    """Seconds to COPY and COMMIT batches of the drain's size on one connection. Their bytes are made beforehand."""
    encoder, offset, seconds, size = RowEncoder(), 0, 0.0, settings.drain_batch_records_max
    with contextlib.closing(psycopg2.connect(settings.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
        connection.commit()
        for records in some:
            prepared = []
            for first in range(0, len(records), size):
                values = records[first : first + size]
                prepared.append(
                    list(copy_chunks(encoder.rows(values, place_columns("bench", PARTITION), offset, [], [])))
                )
                offset += len(values)
            begun = time.monotonic()
            for chunks in prepared:
                cursor.copy_expert(query("copy_events"), File(chunks))
                connection.commit()
            seconds += time.monotonic() - begun
    return seconds


def bare_read(log: EventLog, settings: Settings, count: int) -> float:
    """Seconds to read everything in batches of the drain's size."""
    log.identity()
    started, offset = time.monotonic(), 0
    while offset < count:
        batch: LogBatch | None = log.read(
            PARTITION, offset, records_max=settings.drain_batch_records_max, wait_seconds=1.0
        )
        if batch is None:
            raise RuntimeError(f"the log ends at {offset} of {count}")
        offset = batch.next_offset
    return time.monotonic() - started


def run_drain(log: EventLog, settings: Settings, count: int) -> tuple[float, float]:
    """Wall and CPU seconds in which `drain` stores all `count` records. It must store all of them."""
    clock = SystemClock()
    control = wiring.make_control_store(settings)
    storage = wiring.make_storage(settings)
    fence = wiring.make_offset_fence(settings)
    stored_until = 0
    # Connect first: a worker's clients were connected by earlier runs.
    identity = log.identity()
    storage.offsets.stored_offsets(identity.log_id)
    fence.fence(identity.log_id, identity.incarnation)
    control.state()

    def on_stored(next_offset: int, _: object) -> None:
        nonlocal stored_until
        stored_until = next_offset

    started, cpu = time.monotonic(), own_cpu_seconds()
    report: DrainReport = drain(
        PARTITION,
        log=log,
        sink=storage.events,
        fence=fence,
        breaker=SinkBreaker(settings, control, clock, "bench"),
        paused=lambda: stored_until >= count,  # ends the run, as a pause would
        settings=settings,
        clock=clock,
        on_stored=on_stored,
    )
    seconds, used = time.monotonic() - started, own_cpu_seconds() - cpu
    storage.close()
    if report.stored != count:
        raise RuntimeError(f"drain stored {report.stored} of {count}: {report}")
    return seconds, used


@dataclass
class Rates:
    """Rows a second of one kind of round, and CPU-seconds of drain and PostgreSQL for its rows."""

    copy: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    drain: list[float] = field(default_factory=list)
    drain_cpu: list[float] = field(default_factory=list)
    postgres_cpu: list[float] = field(default_factory=list)

    def figures(self, **more: Any) -> dict[str, Any]:
        """All figures, for the JSON."""
        return {**vars(self), **more}


# The database of one turn: the given one, or a copy of it.
Turn = Callable[[Settings], contextlib.AbstractContextManager[Settings]]


class Bench:
    """The servers, and the measurements on them."""

    def __init__(self, options: Options, home: Path, stack: contextlib.ExitStack) -> None:
        self._by_day = options.by_day
        self._postgres = started(stack, postgres_server(home, free_port()))
        self._control = started(stack, redis_server(home, free_port(), is_log=False, maxmemory="256mb"))
        self._is_redis_log = options.log == "redis"
        if not self._is_redis_log:
            self._log_server = started(stack, kafka_server(home, free_port(), free_port()))
        else:
            self._log_server = started(stack, redis_server(home, free_port(), is_log=True, maxmemory="8gb"))

    def settings(self) -> Settings:
        """Settings with a log of their own."""
        unique = uuid.uuid4().hex
        settings = Settings(
            database_url=self._postgres.url,
            redis_url=self._control.url,
            event_log_url=self._log_server.url,
            key_prefix=f"{unique}:",
            log_topic=unique,
            log_partitions=1,
            append_seconds_max=10.0,  # to fill the log, which is not measured
            drain_run_seconds_max=240,
            drain_hard_seconds_max=300,
        )
        migrate(settings)  # a new log asks the database for its lowest offsets
        return settings

    @contextlib.contextmanager
    def database(self, settings: Settings, *, in_one_table: bool = False) -> Iterator[Settings]:
        """A fresh database for these settings."""
        with fresh_database(self._postgres, settings, by_day=self._by_day and not in_one_table) as fresh:
            yield fresh

    def copy_of(self, database: Settings) -> contextlib.AbstractContextManager[Settings]:
        """A copy of a filled database, so that each turn finds as many rows as the others."""
        return fresh_database(self._postgres, database, copied_from=database)

    @contextlib.contextmanager
    def filled_log(self, settings: Settings, some: Iterable[list[bytes]]) -> Iterator[None]:
        """A log with these records, until the block ends."""
        with contextlib.closing(wiring.make_log(settings)) as log:
            log.identity()
            for records in some:
                for first in range(0, len(records), APPEND_AT_ONCE):
                    log.append([(PARTITION, value) for value in records[first : first + APPEND_AT_ONCE]])
        self._rewrite_log_file()
        yield

    def _rewrite_log_file(self) -> None:
        """Let Redis rewrite its append-only file now, and wait for the end.

        Otherwise it does that by itself soon after the log was filled: its child then takes a core from what is
        measured, and its fork stops the server.
        """
        if not self._is_redis_log:
            return
        with redis.Redis.from_url(self._log_server.url) as client:

            def is_at_rest() -> bool:
                facts = client.info("persistence")
                return not facts["aof_rewrite_in_progress"] and not facts["aof_rewrite_scheduled"]

            wait_until(is_at_rest, "end of the rewrite of the append-only file that Redis began")
            client.bgrewriteaof()
            wait_until(is_at_rest, "end of the rewrite of the append-only file")

    def control_commands(self) -> int:
        """Commands that the control Redis has run since its start, including those in scripts."""
        with redis.Redis.from_url(self._control.url) as client:
            return sum(int(one["calls"]) for one in client.info("commandstats").values())

    def read(self, settings: Settings, count: int) -> float:
        """Rows/s of a bare read."""
        # A new reader: one that is at the end of the log would first wait for its pending fetch.
        with contextlib.closing(wiring.make_log(settings)) as log:
            return count / bare_read(log, settings, count)

    def drain(self, settings: Settings, count: int, rates: Rates) -> None:
        """Note rows/s and CPU of a drain."""
        with contextlib.closing(wiring.make_log(settings)) as log:
            before = cpu_seconds(self._postgres.pid)
            seconds, used = run_drain(log, settings, count)
            rates.postgres_cpu.append(cpu_seconds(self._postgres.pid) - before)
            rates.drain.append(count / seconds)
            rates.drain_cpu.append(used)


def run(options: Options, marks: set[str]) -> list[Line]:
    """Measure and return the lines."""
    lines = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bench = Bench(options, Path(folder), stack)
        if "M7" in marks:
            lines += _m7(bench, options)
        if "M8" in marks:
            lines += _m8(bench, options)
    return lines


def _m7(bench: Bench, options: Options) -> list[Line]:
    count = 20_000 if options.quick else 300_000
    records = records_of(0, count)
    rates, in_one_table = Rates(), Rates()
    for _ in range(options.rounds):
        settings = bench.settings()
        with bench.filled_log(settings, [records]):
            with bench.database(settings) as fresh:
                rates.copy.append(count / plain_copy(fresh, [records]))
            rates.read.append(bench.read(settings, count))
            with bench.database(settings) as fresh:
                bench.drain(fresh, count, rates)
        if options.by_day:  # from a log of its own: the first one is trimmed
            settings = bench.settings()
            with bench.filled_log(settings, [records]), bench.database(settings, in_one_table=True) as fresh:
                bench.drain(fresh, count, in_one_table)
    slower = [min(pair) for pair in zip(rates.copy, rates.read, strict=True)]
    what = f"rows/s of a drain / the slower of COPY and a bare read, {count:,} rows"
    figures = rates.figures(rows=count)
    lines = [
        Line("M7", what, ratios(rates.drain, slower), at_least(0.8), figures=figures),
        Line("M7", "… / COPY alone", ratios(rates.drain, rates.copy), figures=figures),
    ]
    return lines + _against_one_table("M7", rates, in_one_table)


def _against_one_table(mark: str, by_day: Rates, in_one_table: Rates) -> list[Line]:
    """The line that compares the two layouts; none if only one was measured."""
    if not in_one_table.drain:
        return []
    what, figures = "… / a drain into one table of that size", in_one_table.figures()
    return [Line(mark, what, ratios(by_day.drain, in_one_table.drain), at_least(0.7), figures=figures)]


def _m8(bench: Bench, options: Options) -> list[Line]:
    stored, backlog = [1_000_000, 5_000_000], 2_000_000
    if not options.full:
        stored, backlog = ([20_000], 20_000) if options.quick else ([100_000, 500_000], 200_000)
    elif options.by_day:
        stored, backlog = stored[-1:], 0  # two tables have to be filled
    reduced = "" if options.full else " (not the goal's size: --full has it)"
    rounds = min(options.rounds, FULL_ROUNDS_MAX) if options.full else options.rounds * SHORT_ROUNDS
    lines = []
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(bench.database(bench.settings()))
        in_one_table = None
        if options.by_day:
            in_one_table = stack.enter_context(bench.database(bench.settings(), in_one_table=True))
        there = there_in_one_table = 0
        for wanted in stored:
            plain_copy(database, pieces(wanted - there))
            if in_one_table is not None:
                plain_copy(in_one_table, pieces(wanted - there_in_one_table))
            turn = contextlib.nullcontext if options.full else bench.copy_of
            rates, others, size = _rounds_at(bench, database, in_one_table, turn, rounds)
            there = there_in_one_table = wanted
            if options.full:
                there += len(rates.drain) * 2 * TRIED_ROWS
                there_in_one_table += len(others.drain) * TRIED_ROWS
            what = f"drain / COPY with {wanted:,} stored{reduced}"
            lines += [
                Line("M8", what, ratios(rates.drain, rates.copy), at_least(0.8), figures=rates.figures(**size)),
                *_against_one_table("M8", rates, others),
            ]
    if backlog:
        lines.append(_long_backlog(bench, backlog, 1 if options.full else rounds, reduced))
    return lines


def _rounds_at(
    bench: Bench, database: Settings, in_one_table: Settings | None, turn: Turn, rounds: int
) -> tuple[Rates, Rates, dict[str, int]]:
    """COPY and drain in turns into the existing table, and a drain into the other one if there is one.

    Each makes it at most some percent larger, or works on a copy of it. Returns the rates of both tables, and the size
    of the first one after the last drain.
    """
    rates, others, size = Rates(), Rates(), {}
    for _ in range(rounds):
        with turn(database) as mine:
            _checkpoint(mine)
            rates.copy.append(TRIED_ROWS / plain_copy(mine, [records_of(0, TRIED_ROWS)]))
        with turn(database) as mine:
            _drain_into(bench, mine, rates)
            size = sizes_of(mine)
        if in_one_table is not None:
            with turn(in_one_table) as mine:
                _checkpoint(mine)
                _drain_into(bench, mine, others)
    return rates, others, size


def _checkpoint(database: Settings) -> None:
    with contextlib.closing(psycopg2.connect(database.database_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CHECKPOINT")


def _drain_into(bench: Bench, database: Settings, rates: Rates) -> None:
    """Drain a log of its own into an existing table."""
    own = bench.settings()
    with bench.filled_log(own, [records_of(0, TRIED_ROWS)]):
        bench.drain(replace(own, database_url=database.database_url), TRIED_ROWS, rates)


def sizes_of(database: Settings) -> dict[str, int]:
    """How large the table and its indexes are."""
    with contextlib.closing(psycopg2.connect(database.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(_SIZES)
        [(rows, table_bytes, index_bytes)] = cursor.fetchall()
        return {"rows_after": rows, "table_bytes": table_bytes, "index_bytes": index_bytes}


def _long_backlog(bench: Bench, count: int, rounds: int, reduced: str) -> Line:
    """Drains of a long backlog into an empty table, against COPYs of as many rows."""
    rates, size = Rates(), {}
    for _ in range(rounds):
        settings = bench.settings()
        with bench.database(settings) as fresh:
            rates.copy.append(count / plain_copy(fresh, pieces(count)))
        with bench.filled_log(settings, pieces(count)), bench.database(settings) as fresh:
            bench.drain(fresh, count, rates)
            size = sizes_of(fresh)
    what = f"drain / COPY of a backlog of {count:,}{reduced}"
    return Line("M8", what, ratios(rates.drain, rates.copy), at_least(0.8), figures=rates.figures(**size))
