"""The cost of an event, by event log: from the JSON of `./bench.sh`, or from the figures of this repository.

The commands of an idle system are those of `python -m checks.idle` in each case: the benchmark runs no whole system.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MEASURED: Final = Path(__file__).parent / "measured.json"
BATCH_EVENTS: Final = 100  # in a body of M2
IDLE: Final = "idle"  # beside the event logs in the file
# The lines of M13, as the benchmark names them.
EVENT_BYTES: Final = "an event as M1, M2 and M4 send it"
COMMANDS_INGEST: Final = "commands of the control Redis for an idle ingest process"
COMMANDS_LEASE: Final = "… for a lease"
RECORD_BYTES: Final = "a record as M7 and M8 store it"
HELD_BYTES: Final = "… in the event log, with what the log adds"
STORED_BYTES: Final = "… in PostgreSQL, with its indexes"
COMMANDS_BATCH: Final = "commands of the control Redis for a batch"
BATCH_SECONDS: Final = "a batch of 10 rows"


class CostsError(Exception):
    """A file has no costs, or none for this event log."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs with one event log. Microseconds are CPU time."""

    log: str
    source: str  # machine, day and commit
    event_bytes: float  # of an event in the measurement of ingest
    single_us: float  # ingest, an event alone in its request
    batch_us: float  # ingest, an event in a body of BATCH_EVENTS
    log_us: float  # the log's server, an event in such a body
    record_bytes: float  # of a record in the measurement of drains
    drain_us: float  # a drain, a record
    postgres_us: float  # PostgreSQL, a record
    held_bytes: float  # in the event log, a record
    stored_bytes: float  # in PostgreSQL with its indexes, a record
    ingest_commands: float  # of the control Redis, a second and ingest process
    lease_commands: float  # of the control Redis, a lease
    batch_commands: float  # of the control Redis, a batch
    batch_seconds: float  # the smallest batches of one drain
    idle_commands: float  # of the control Redis, a second: workers, Beat and Flower without work


def of_repository(log: str) -> Costs:
    """The costs in this repository."""
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    return Costs(**found[log], idle_commands=found[IDLE]["commands"])


def of_bench(paths: Sequence[Path], log: str) -> Costs:
    """The costs in files of `./bench.sh --json`. For each figure, the last file with this log and the figure wins.

    The CPU of PostgreSQL is the highest of all files. Raises CostsError if no file has a figure, or if a file is not
    from the benchmark.
    """
    found: dict[str, float] = {}
    sources: list[str] = []
    postgres: list[float] = []
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            figures = _figures(document["lines"])
            postgres += [figures["postgres_us"]] if "postgres_us" in figures else []
            if document["log"] == log:
                found |= figures
                sources.append(source_of(document))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CostsError(f"{path} is no JSON of ./bench.sh --json: {error!r}") from error
    if postgres:  # independent of the log; the largest table in the tests costs most
        found["postgres_us"] = max(postgres)
    wanted = {field.name for field in dataclasses.fields(Costs)} - {"log", "source", "idle_commands"}
    if missing := sorted(wanted - set(found)):
        raise CostsError(
            f"no file of --bench has {', '.join(missing)} with the event log {log}: "
            f"./bench.sh --log {log} --only M1,M2,M7,M8,M13 --json FILE"
        )
    idle_commands = of_repository(log).idle_commands
    return Costs(log=log, source="; ".join(dict.fromkeys(sources)), idle_commands=idle_commands, **found)


def source_of(document: Mapping[str, Any]) -> str:
    """The source of a benchmark's figures, in words."""
    words = [f"{document.get('processor') or document.get('machine', 'an unknown machine')}"]
    words[0] += f", {document.get('cores', '?')} cores"
    words += [str(document["day"])] if document.get("day") else []
    words += [f"commit {document['commit']}"] if document.get("commit") else []
    words.append(f"load average before {document.get('load_average_before', 0):.1f}")
    if document.get("quick"):
        words.append("--quick: these figures mean nothing")
    return ", ".join(words)


def _figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The costs in the lines of one benchmark."""
    found: dict[str, float] = {}
    postgres: dict[str, float] = {}  # M7 begins with an empty table
    for line in lines:
        mark, figures, value = line["mark"], line.get("figures") or {}, line.get("value")
        for name, key in (("single", "single_us"), ("batch", "batch_us")):
            if isinstance(figures.get(name), Mapping):
                found[key] = 1e6 / figures[name]["per_cpu_second"]
        if isinstance(figures.get("batch"), Mapping):
            batch = figures["batch"]
            found["log_us"] = 1e6 * batch["log_server_cpu_seconds"] / (batch["per_cpu_second"] * batch["cpu_seconds"])
        if mark == "M7" and "drain_cpu" in figures:
            rows = figures["rows"]
            found["drain_us"] = 1e6 * statistics.median(figures["drain_cpu"]) / rows
            postgres["M7"] = 1e6 * statistics.median(figures["postgres_cpu"]) / rows
        if mark == "M8" and "drain_cpu" in figures and "backlog" not in line["what"]:
            # Each round stores TRIED_ROWS rows; the table has more.
            postgres["M8"] = 1e6 * statistics.median(figures["postgres_cpu"]) / TRIED_ROWS
        if mark == "M13" and value is not None:
            found |= {key: float(value) for what, key in SIZES.items() if line["what"] == what}
    return found | ({"postgres_us": max(postgres.values())} if postgres else {})


TRIED_ROWS: Final = 100_000  # of each round of M8
SIZES: Final = {
    EVENT_BYTES: "event_bytes",
    COMMANDS_INGEST: "ingest_commands",
    COMMANDS_LEASE: "lease_commands",
    RECORD_BYTES: "record_bytes",
    HELD_BYTES: "held_bytes",
    STORED_BYTES: "stored_bytes",
    COMMANDS_BATCH: "batch_commands",
    BATCH_SECONDS: "batch_seconds",
}


def save(costs: Costs, path: Path) -> None:
    """Write the costs for their log into a file, in the format of this repository."""
    numbers = {
        name: value if isinstance(value, str) else float(f"{value:.4g}")
        for name, value in dataclasses.asdict(costs).items()
        if name != "idle_commands"
    }
    _write(path, {costs.log: numbers})


def save_idle(counted: Path, path: Path) -> None:
    """Write the commands of an idle system into such a file, from one of `python -m checks.idle --json`.

    Raises CostsError if it is another file.
    """
    try:
        found = json.loads(counted.read_text(encoding="utf-8"))
        source = f"{found['processor']}, {found['cores']} cores, {found['day']}, commit {found['commit']}"
        commands = float(f"{found['control_commands']:.4g}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CostsError(f"{counted} is no JSON of python -m checks.idle --json: {error!r}") from error
    _write(path, {IDLE: {"source": source, "commands": commands}})


def _write(path: Path, new: Mapping[str, Any]) -> None:
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**known, **new}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
