"""M13: sizes and counts that `python -m checks.sizing` needs beside the CPU of M1, M2, M7 and M8. No ratios.

The bytes of an event in the event log and in PostgreSQL, the commands that the control Redis runs for an ingest
process, a lease and a batch, and the time of the smallest batches. Only that time depends on the machine.
"""

import contextlib
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import redis

from checks.bench.drain import PIECE_ROWS, Bench, Rates, records_of, sizes_of
from checks.bench.edge import await_ready, process
from checks.bench.machine import LOAD_CORE, SERVER_CORE, Options, run_anywhere, run_on
from checks.bench.table import Line
from checks.loadgen.closed_load import an_event
from pipeline import wiring
from pipeline.settings import Settings
from stack.servers import free_port

MARK: Final = "M13"
LEASES: Final = 100
SMALL_BATCH_ROWS: Final = 10
SMALL_BATCHES: Final = 50
SMALL_DRAINS: Final = 8


def run(options: Options, _marks: set[str]) -> list[Line]:
    """Measure and return the lines."""
    run_on(LOAD_CORE)  # for the servers
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            bench = Bench(options, Path(folder), stack)
            run_on(SERVER_CORE)
            return [*_of_ingest(bench, options), *_of_storing(bench, options, Path(folder))]
    finally:
        run_anywhere()


def _line(what: str, value: float, unit: str) -> Line:
    return Line(MARK, what, [value], unit=unit)


def _of_ingest(bench: Bench, options: Options) -> list[Line]:
    """One ingest process without requests, and leases that this process takes."""
    event = len(msgspec.json.encode(an_event(0)))
    settings = replace(bench.settings(), ingest_port=free_port())
    with process([sys.executable, "-m", "ingest"], settings, settings.ingest_port):
        await_ready(settings.ingest_port)
        commands, begun = bench.control_commands(), time.monotonic()
        time.sleep(4 * options.seconds)
        a_second = (bench.control_commands() - commands) / (time.monotonic() - begun)
    bucket = wiring.make_bucket(settings)
    bucket.take(needed=1, wanted=1, process="bench")
    commands = bench.control_commands()
    for _ in range(LEASES):
        bucket.take(needed=1, wanted=1, process="bench")
    a_lease = (bench.control_commands() - commands) / LEASES
    return [
        _line("an event as M1, M2 and M4 send it", event, "bytes"),
        _line("commands of the control Redis for an idle ingest process", a_second, "a second"),
        _line("… for a lease", a_lease, "a lease"),
    ]


def _of_storing(bench: Bench, options: Options, home: Path) -> list[Line]:
    """Fill a log and drain it, once in large and once in small batches."""
    count = 20_000 if options.quick else PIECE_ROWS
    records, rates, settings = records_of(0, count), Rates(), bench.settings()
    before = held_bytes(settings, home)
    with bench.filled_log(settings, [records]), bench.database(settings) as fresh:
        held = held_bytes(settings, home) - before
        bench.drain(fresh, count, rates)
        sizes = sizes_of(fresh)
    few = SMALL_BATCHES * SMALL_BATCH_ROWS
    for _ in range(SMALL_DRAINS):
        settings = replace(bench.settings(), drain_batch_records_max=SMALL_BATCH_ROWS)
        with bench.filled_log(settings, [records_of(0, few)]), bench.database(settings) as fresh:
            commands = bench.control_commands()
            bench.drain(fresh, few, rates)
            a_batch = (bench.control_commands() - commands) / SMALL_BATCHES
    fastest = max(rates.drain[1:])  # the others waited for the disk or a core
    stored_bytes = sizes["table_bytes"] + sizes["index_bytes"]
    return [
        _line("a record as M7 and M8 store it", sum(map(len, records)) / count, "bytes"),
        _line("… in the event log, with what the log adds", held / count, "bytes"),
        _line("… in PostgreSQL, with its indexes", stored_bytes / sizes["rows_after"], "bytes"),
        _line("commands of the control Redis for a batch", a_batch, "a batch"),
        _line(f"a batch of {SMALL_BATCH_ROWS} rows", SMALL_BATCH_ROWS / fastest, "s"),
    ]


def held_bytes(settings: Settings, home: Path) -> int:
    """Bytes that the event log's server holds: in memory, or in Kafka's files."""
    if settings.log_scheme == "redis":
        with redis.Redis.from_url(settings.event_log_url) as client:
            return int(client.info("memory")["used_memory"])
    return sum(os.stat(path).st_size for path in (home / "kafka").rglob("*.log"))  # noqa: PTH116
