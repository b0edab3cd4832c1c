"""The arithmetic of `python -m checks.sizing`, its costs from a benchmark's JSON, and the tables of docs/sizing.md."""

import json
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from checks.bench import drain, sizes
from checks.bench.edge import BATCH_EVENTS
from checks.sizing import costs as costs_module
from checks.sizing.costs import IDLE, MEASURED, Costs, CostsError, of_bench, of_repository, save, save_idle
from checks.sizing.estimate import ADDED_BYTES, Estimate, Given, estimate, ingest_us
from checks.sizing.text import number, size, table, with_tables
from pipeline.settings import Settings
from pipeline.sink.sessions import sessions_needed

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sizing.md"
# Round figures: a request 990 µs and an event 10 µs, so an event alone is 1,000 µs, and one in a hundred 19.9 µs.
ROUND = Costs(
    log="redis", source="a test", event_bytes=200, single_us=1000, batch_us=19.9, log_us=10,
    record_bytes=200 + ADDED_BYTES, drain_us=20, postgres_us=50, held_bytes=400, stored_bytes=500, ingest_commands=60,
    lease_commands=3, batch_commands=5, batch_seconds=0.01, idle_commands=90,
)  # fmt: skip
GIVEN = Given(rate=10_000, size=200)


def test_an_event_costs_less_in_company() -> None:
    assert [round(ingest_us(ROUND, body), 3) for body in (1, 10, 100, 1000)] == [1000, 109, 19.9, 10.99]


def test_each_figure_of_a_plain_case() -> None:
    found = estimate(GIVEN, ROUND)
    assert asdict(found) == pytest.approx(
        {
            "systems": 1,
            "limited_by": "",
            "rate": 10_000,
            "ingest_cores": 0.199,
            "ingest_processes": 2,  # one would do, and one may be restarted
            "network_bytes": 2_000_000,
            "log_cores": 0.1,
            "log_bytes": 10_000 * 1800 * 400,
            "partitions": 4,  # the default; one drain could do it
            "drains": 4,
            "drains_max": 8,
            "drain_cores": 0.2,
            "batch_processes": 6,
            "control_processes": 2,
            "sessions": 11,
            # An idle system, 2 processes, 33 leases a second, and 4 drains that are busy for an eighth of the time
            "control_commands": 90 + 2 * 60 + 3 / 0.03 + 4 * (1 - 0.125) / 0.01 * 5,
            "postgres_cores": 0.5,
            "disk_bytes_a_day": 10_000 * 86_400 * 500,
        }
    )
    assert found.sessions == sessions_needed(Settings(log_partitions=4)).all


def test_larger_events_cost_in_proportion_and_smaller_ones_are_not_cheaper() -> None:
    plain, large = estimate(GIVEN, ROUND), estimate(replace(GIVEN, size=2 * 200 + ADDED_BYTES), ROUND)
    assert large.postgres_cores == pytest.approx(2 * plain.postgres_cores)
    assert large.ingest_cores == pytest.approx((400 + ADDED_BYTES) / 200 * plain.ingest_cores)
    assert large.disk_bytes_a_day == pytest.approx(10_000 * 86_400 * (500 + 200 + ADDED_BYTES))
    small = estimate(replace(GIVEN, size=50), ROUND)
    assert (small.ingest_cores, small.postgres_cores) == (plain.ingest_cores, plain.postgres_cores)
    assert small.log_bytes == pytest.approx(10_000 * 1800 * (400 - 150))


def test_what_was_measured_for_less_than_a_records_own_bytes_is_at_least_those() -> None:
    # Given a log that compresses
    found = estimate(replace(GIVEN, size=1000), replace(ROUND, held_bytes=10))
    assert found.log_bytes == pytest.approx(10_000 * 1800 * (1000 + ADDED_BYTES))


@pytest.mark.parametrize(
    ("rate", "busy", "drains", "partitions"),
    [
        (10_000, 0.5, 4, 4),
        (40_000, 0.5, 4, 4),  # 40,000 * 50 µs = 2 cores: 4 of which half is used
        (40_001, 0.5, 8, 8),  # 5 are needed; partitions are a power of two, and each has a drain up to DRAINS_MAX
        (64_000, 0.5, 8, 8),
    ],
)
def test_drains_grow_with_the_rate(rate: float, busy: float, drains: int, partitions: int) -> None:
    found = estimate(replace(GIVEN, rate=rate, busy=busy, postgres_cores=1000), replace(ROUND, log_us=0.1))
    assert (found.drains, found.partitions) == (drains, partitions)


def test_more_drains_than_the_default_are_said() -> None:
    found = estimate(replace(GIVEN, rate=200_000, postgres_cores=1000), replace(ROUND, log_us=0.1))
    assert (found.drains_max, found.drains, found.partitions, found.systems) == (20, 20, 32, 1)
    assert found.sessions == 20 + 2 + 2 + 3


def test_one_postgresql_has_an_end_and_so_has_one_redis() -> None:
    # 8 cores of which half is used, 50 µs an event: 80,000 events/s
    assert estimate(replace(GIVEN, rate=80_000), replace(ROUND, log_us=1)).systems == 1
    above = estimate(replace(GIVEN, rate=80_001), replace(ROUND, log_us=1))
    assert (above.systems, above.limited_by, above.rate) == (2, "PostgreSQL", 40_000.5)
    # One core of which half is used, 10 µs an event: 50,000 events/s; Kafka's brokers have several
    wide = replace(GIVEN, rate=50_001, postgres_cores=1000)
    assert (estimate(wide, ROUND).systems, estimate(wide, ROUND).limited_by) == (2, "the event log's Redis")
    assert estimate(wide, replace(ROUND, log="kafka")).systems == 1


def test_copies_take_memory_and_cores_of_the_log() -> None:
    one, three = estimate(GIVEN, ROUND), estimate(replace(GIVEN, copies=3), ROUND)
    assert (three.log_bytes, three.log_cores) == pytest.approx((3 * one.log_bytes, 3 * one.log_cores))


@pytest.mark.parametrize(("value", "text"), [(0.05, "0.05"), (2.0, "2"), (4.44, "4.4"), (1234, "1,230")])
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(999, "999 bytes"), (5e9, "5 GB"), (1.5e18, "1,500 PB")])
def test_bytes_for_people(value: float, text: str) -> None:
    assert size(value) == text


def _bench(log: str = "redis") -> dict[str, Any]:
    """A JSON of the benchmark with the costs above."""
    edge = {
        "single": {"per_cpu_second": 1000.0, "cpu_seconds": 1.0, "log_server_cpu_seconds": 0.1},
        "batch": {"per_cpu_second": 1e6 / 19.9, "cpu_seconds": 1.0, "log_server_cpu_seconds": 10 / 19.9},
    }
    lines = [
        {"mark": "M1", "what": "a", "value": 1.0, "figures": {"single": edge["single"], "bare single": {}}},
        {"mark": "M2", "what": "b", "value": 1.0, "figures": {"batch": edge["batch"]}},
        {
            "mark": "M7", "what": "d", "value": 1.0,
            "figures": {"drain_cpu": [0.2, 0.1, 9.0], "postgres_cpu": [0.1], "rows": 10_000},
        },
        {
            "mark": "M8", "what": "with a million stored", "value": 1.0,
            "figures": {"drain_cpu": [1.0], "postgres_cpu": [5.0]},
        },
        {"mark": "M8", "what": "a backlog", "value": 1.0, "figures": {"drain_cpu": [1.0], "postgres_cpu": [900.0]}},
        {"mark": "M3", "what": "not measured", "value": None, "figures": {}},
    ]  # fmt: skip
    values = {
        costs_module.EVENT_BYTES: ROUND.event_bytes, costs_module.COMMANDS_INGEST: ROUND.ingest_commands,
        costs_module.COMMANDS_LEASE: ROUND.lease_commands, costs_module.RECORD_BYTES: ROUND.record_bytes,
        costs_module.HELD_BYTES: ROUND.held_bytes, costs_module.STORED_BYTES: ROUND.stored_bytes,
        costs_module.COMMANDS_BATCH: ROUND.batch_commands, costs_module.BATCH_SECONDS: ROUND.batch_seconds,
    }  # fmt: skip
    lines += [{"mark": "M13", "what": what, "value": value, "figures": {}} for what, value in values.items()]
    return {"log": log, "cores": 2, "processor": "P", "day": "2026-01-01", "commit": "abc", "lines": lines}


def test_costs_are_read_from_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(_bench()))
    found = of_bench([file], "redis")
    assert found.source == "P, 2 cores, 2026-01-01, commit abc, load average before 0.0"
    for field in fields(Costs):
        if field.name not in ("log", "source", "idle_commands"):
            assert getattr(found, field.name) == pytest.approx(getattr(ROUND, field.name)), field.name
    # And what is saved is read again
    save(found, tmp_path / "saved.json")
    # With what an idle system takes, which is measured apart
    counted = {"processor": "P", "cores": 2, "day": "2026-01-02", "commit": "def", "control_commands": 77.777}
    (tmp_path / "idle.json").write_text(json.dumps(counted))
    save_idle(tmp_path / "idle.json", tmp_path / "saved.json")
    with pytest.raises(CostsError, match=r"bench\.json is no JSON of python -m checks\.idle"):
        save_idle(file, tmp_path / "saved.json")
    monkeypatch.setattr(costs_module, "MEASURED", tmp_path / "saved.json")
    save(found, tmp_path / "saved.json")
    again = of_repository("redis")
    assert (again.postgres_us, again.idle_commands) == (50, 77.78)


def test_a_benchmark_in_two_parts(tmp_path: Path) -> None:
    document = _bench()
    for name, part in (("a", document["lines"][:2]), ("b", document["lines"][2:])):
        (tmp_path / name).write_text(json.dumps(document | {"lines": part}))
    (tmp_path / "kafka").write_text(json.dumps(_bench("kafka") | {"commit": "other"}))
    files = [tmp_path / name for name in ("a", "b", "kafka")]
    assert of_bench(files, "redis").source.count("commit") == 1
    with pytest.raises(CostsError, match=r"no file of --bench has batch_us.*with the event log redis: \./bench\.sh"):
        of_bench(files[1:], "redis")
    # PostgreSQL's CPU does not depend on the log: the highest counts
    (tmp_path / "slow").write_text(
        json.dumps(
            _bench("kafka")
            | {"lines": [{**document["lines"][3], "figures": {"drain_cpu": [1.0], "postgres_cpu": [7.0]}}]}
        )
    )
    assert of_bench([*files, tmp_path / "slow"], "redis").postgres_us == pytest.approx(70)
    (tmp_path / "broken").write_text("{}")
    with pytest.raises(CostsError, match=r"broken is no JSON of \./bench\.sh --json"):
        of_bench([tmp_path / "broken"], "redis")


def test_the_benchmark_still_has_these_lines() -> None:
    said = (ROOT / "checks" / "bench" / "sizes.py").read_text()
    assert f"a batch of {sizes.SMALL_BATCH_ROWS} rows" == costs_module.BATCH_SECONDS
    for what in (*costs_module.SIZES, ""):
        assert what == costs_module.BATCH_SECONDS or what in said, what
    assert (drain.TRIED_ROWS, BATCH_EVENTS) == (costs_module.TRIED_ROWS, costs_module.BATCH_EVENTS)


def test_the_pages_tables_are_what_the_calculator_says() -> None:
    written = PAGE.read_text()
    now = with_tables(written, of_repository("redis"), of_repository("kafka"))
    assert written == now, "the costs or the arithmetic have changed: python -m checks.sizing --write docs/sizing.md"
    with pytest.raises(ValueError, match="0 places for the table costs"):
        with_tables("# no place", of_repository("redis"), of_repository("kafka"))


def test_the_figures_of_the_repository_say_where_they_come_from() -> None:
    for log, costs in json.loads(MEASURED.read_text()).items():
        assert costs.get("log", IDLE) == log
        assert "commit" in costs["source"]
        assert "quick" not in costs["source"]


def test_the_table_for_a_terminal_has_every_figure() -> None:
    given = replace(GIVEN, rate=200_000)
    text = table(given, estimate(given, ROUND), ROUND)
    assert "200,000 events/s of 200 bytes, 100 in a request" in text
    assert "costs: a test" in text
    # The drains are in DRAINS_MAX, and two figures share a line
    assert len(text.split("\n\n")[1].splitlines()) == len(fields(Estimate)) - 2


def _run(*words: str, packages: bool = True) -> "subprocess.CompletedProcess[str]":
    python = [sys.executable] if packages else [sys.executable, "-S"]
    return subprocess.run(
        [*python, "-m", "checks.sizing", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def test_help_needs_no_package() -> None:
    said = _run("--help", packages=False)
    assert said.returncode == 0, said.stderr
    assert "--rate" in said.stdout


def test_the_command() -> None:
    said = _run("--rate", "10,000", "--size", "500", "--log", "kafka", "--json")
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    given = Given(rate=10_000, size=500)
    assert document["estimate"] == asdict(estimate(given, of_repository("kafka")))
    assert _run("--rate", "0").returncode == 2
    wrong = _run("--bench", "/no/such/file")
    assert (wrong.returncode, "is no JSON of ./bench.sh --json" in wrong.stderr) == (1, True)
