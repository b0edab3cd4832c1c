"""Drains: how workers store events of the log in the sink."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.settings.field import setting


@dataclass(frozen=True, kw_only=True)
class DrainSettings:
    """Batches, time limits and dead letters."""

    drain_batch_records_max: int = setting(
        5000,
        "Most records of one transaction; after a crash they are stored again",
        low=1,
        high=100_000,
        when="lower if a batch takes PostgreSQL longer than SINK_CALL_SECONDS_MAX, higher for fewer commits",
    )
    drain_batch_bytes_max: int = setting(
        8 << 20,
        "Most bytes of one transaction; PostgreSQL must store them within SINK_CALL_SECONDS_MAX",
        low=1 << 16,
        high=256 << 20,
        when="as above, if events are large",
    )
    drain_careful_records_max: int = setting(
        500,
        "Most records of one transaction after PostgreSQL refused some of them; each record is tried alone",
        low=1,
        high=100_000,
        when="rarely. Lower it if triggers or constraints need milliseconds for each row",
    )
    drain_run_seconds_max: float = setting(
        10.0,
        "Length of one drain task, up to twice as long without records; at its end it sends the hint for the next one",
        low=0.1,
        high=300,
        when="lower to stop workers sooner. Each run costs a task",
    )
    drains_max: int = setting(
        8,
        "Drains that run at once, of all workers; with more partitions, each drains several in turn. A drain needs a "
        "process and a connection to PostgreSQL. Workers need two processes more than drains",
        unit="drains",
        low=1,
        high=256,
        when="the log has more partitions than this, and PostgreSQL has the CPU and the connections for more drains; "
        "the same for every process",
    )
    drain_poll_seconds: float = setting(
        1.0,
        "How long one read waits for new records, and how soon a pause ends a drain; on Redis three times as long "
        "while its worker reads the pauses for it. None is stored after a pause in any case",
        low=0.01,
        high=10,
        when="rarely. Reads return as soon as records arrive",
    )
    drain_hard_seconds_max: float = setting(
        40.0,
        "A drain task that runs longer is killed, because it must be frozen",
        low=1,
        high=3600,
        when="together with DRAIN_RUN_SECONDS_MAX; keep it well above that",
    )
    drain_stalled_seconds_max: float = setting(
        15.0,
        "The controller ends a database session that holds a partition with lag for this time without progress",
        low=1,
        high=3600,
        when="sessions of a healthy but slow PostgreSQL are ended: raise it",
    )
    poison_run_records_max: int = setting(
        200,
        "Dead letters in consecutive batches above POISON_RATIO_MAX after which consumption of the partition pauses",
        low=1,
        high=100_000,
        when="bad records of one producer should pause the partition sooner, or later",
    )
    poison_ratio_max: float = setting(
        0.5,
        "Share of dead letters in a batch above which the batch counts for POISON_RUN_RECORDS_MAX",
        unit="share",
        low=0.01,
        high=1.0,
        when="together with POISON_RUN_RECORDS_MAX",
    )
    poison_condemned_records_max: int = setting(
        10,
        "Dead letters for records that fail each time with an error of the database's set-up (a broken trigger). One "
        "more pauses their partition. Ten thousand good records lower the count by one",
        low=1,
        high=100_000,
        when="a trigger or function is known to fail for a few records and can't be fixed",
    )
    sink_connect_seconds_max: int = setting(
        2, "Time to connect to PostgreSQL, for each host of DATABASE_URL", low=1, high=60, when="PostgreSQL is far away"
    )
    sink_call_seconds_max: float = setting(
        2.0,
        "Time without an answer of PostgreSQL after which the connection is closed (a frozen server never answers)",
        low=0.1,
        high=60,
        when="a healthy PostgreSQL is sometimes slower. A higher value opens the breaker later",
    )


def drain_problems(settings: DrainSettings) -> Iterator[str]:
    """A limit that would kill each task before its end."""
    if settings.drain_hard_seconds_max <= settings.drain_run_seconds_max:
        yield (
            f"DRAIN_HARD_SECONDS_MAX={settings.drain_hard_seconds_max} is not above "
            f"DRAIN_RUN_SECONDS_MAX={settings.drain_run_seconds_max}"
        )
