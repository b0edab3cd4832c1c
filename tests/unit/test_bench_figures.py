"""The figures of the documentation are those of the last measurements: checks/bench/measured has their JSON."""

import json
import re
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "checks" / "bench" / "measured"


class Measured:
    """One measurement: its mark, the beginning of its name, and the files that have its rounds.

    Some names repeat in a file, once below each line that they continue: `place` counts them from 0.
    """

    def __init__(self, mark: str, what: str, *files: str, place: int | None = None) -> None:
        self._rounds: list[float] = []
        for name in files:
            lines = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))["lines"]
            found = [one for one in lines if one["mark"] == mark and one["what"].startswith(what)]
            [line] = found if place is None else [found[place]]
            assert line["problem"] is None
            self._rounds += line["rounds"]

    def middle(self, digits: int = 2) -> str:
        return f"{median(self._rounds):,.{digits}f}"

    def spread(self, digits: int = 2) -> str:
        return f"{min(self._rounds):,.{digits}f} to {max(self._rounds):,.{digits}f}"


def goodput(file: str, state: str) -> str:
    """At 2, 5 and 10 times the sink's capacity."""
    whats = (f"goodput at {times} x what the sink takes: drain_time, {state}" for times in (2, 5, 10))
    return ", ".join(Measured("M5", what, file).middle() for what in whats)


REDIS, KAFKA = "drain-time-redis", "drain-time-kafka"
SETTLES, SETTLES_ON_KAFKA = (Measured("M6", "step to 2 x: until", file) for file in (REDIS, KAFKA))
OVER, OVER_ON_KAFKA = (Measured("M6", "… highest lag", file) for file in (REDIS, KAFKA))
SWINGS, SWINGS_ON_KAFKA = (Measured("M6", "… times that it left", file) for file in (REDIS, KAFKA))
P99, P99_ON_KAFKA = (Measured("M6", "… p99", file) for file in (REDIS, KAFKA))
STEPS, STEPS_ON_KAFKA = (Measured("M9", "a sink of 1,500, 600, 3,000", file) for file in (REDIS, KAFKA))
OLDEST, OLDEST_ON_KAFKA = (Measured("M9", "… age of the oldest", file) for file in (REDIS, KAFKA))
FROZEN, REPAIRED = (Measured("M10", what, REDIS, "frozen-redis") for what in ("… stored /", "PostgreSQL frozen"))
FROZEN_ON_KAFKA, REPAIRED_ON_KAFKA = (Measured("M10", what, KAFKA) for what in ("… stored /", "PostgreSQL frozen"))
EDGE = tuple(f"edge-redis-{number}" for number in (1, 2, 3))
BARE = Measured("M1", "single-event 202s", *EDGE)
GROUP_COMMIT = Measured("M1", "… / FastAPI with our", *EDGE)
ONE_APPEND = Measured("M1", "… / FastAPI with an", *EDGE)
REFUSED_BODY, REFUSED_SINGLE, REFUSED_BY_HANDLER = (
    Measured("M4", what, "refusals-redis")
    for what in ("CPU of a 429 / a 202, bodies", "CPU of a 429 / a 202, single", "CPU of a single's 429")
)
EDGES = "edges-redis"
CLIENT, ADAPTER = (Measured("M2", what, EDGES) for what in ("events in bodies of 100 / the log's", "… / our own"))
DECISION, LEVELS, SHARES, ABOVE_SHARE = (
    Measured("M3", what, EDGES)
    for what in (
        "one decision on leases",
        "one decision with levels /",
        "one decision with levels and shares /",
        "one decision about an account",
    )
)
SCRIPT, SLIDING, MOVING, LIMITS, THROTTLED, THROTTLED_ON_REDIS = (
    Measured("M3", what, EDGES)
    for what in (
        "a Redis script a request",
        "limits, in memory (sliding",
        "limits, in memory (moving",
        "limits, on Redis",
        "throttled-py, in memory",
        "throttled-py, on Redis",
    )
)
OTLP, PROTOBUF, BULK, LOKI, LOKI_PROTOBUF, LOKI_METADATA, LOKI_METADATA_PROTOBUF, HEC, LINES = (
    Measured("M11", f"CPU a record, bodies of 100: {what} /", EDGES)
    for what in (
        "OTLP/JSON",
        "OTLP/protobuf",
        "bulk",
        "Loki, JSON",
        "Loki, protobuf",
        "Loki, JSON with metadata",
        "Loki, protobuf with metadata",
        "HEC",
        "lines",
    )
)
SINGLES = tuple(
    Measured("M11", f"CPU a record, one record a body: {what} /", EDGES)
    for what in ("OTLP/JSON", "OTLP/protobuf", "bulk", "HEC", "lines", "GELF")
)
DRAINS = tuple(f"drain-redis-{number}" for number in (1, 2, 3))
SHORT_DRAINS = tuple(
    Measured("M8", what, *DRAINS)
    for what in ("drain / COPY with 100,000", "drain / COPY with 500,000", "drain / COPY of a backlog of 200,000")
)
MILLION, FIVE_MILLIONS, BACKLOG = (
    Measured("M8", what, "drain-full-redis")
    for what in ("drain / COPY with 1,000,000", "drain / COPY with 5,000,000", "drain / COPY of a backlog of 2,000,000")
)
DRAIN_ON_KAFKA = Measured("M7", "rows/s of a drain", "drain-kafka")
DRAIN = Measured("M7", "rows/s of a drain", *DRAINS)
BY_DAY, BY_DAY_STORED = (
    tuple(Measured(mark, what, *files) for what in (first, "… / a drain into one table"))
    for mark, first, files in (
        ("M7", "rows/s of a drain", ["by-day-300k-redis"]),
        ("M8", "drain / COPY with 5,000,000", ["by-day-redis-1", "by-day-redis-2"]),
    )
)
DECODES, DECODES_PROTOBUF = (
    Measured("M14", f"records a CPU-second, OTLP/{kind}: ingest / Collector", "collector-redis")
    for kind in ("JSON", "protobuf")
)


def switched_on(place: int, first: str) -> tuple[Measured, ...]:
    """Single events, bodies of 100 and 429s, of the `place`-th thing that a deployment switches on."""
    return (
        Measured("M12", first, "production-redis"),
        Measured("M12", "… events in bodies of 100", "production-redis", place=place),
        Measured("M12", "… 429s of single events", "production-redis", place=place),
    )


KEYS = switched_on(0, "202s of single events a CPU-second: API keys")
TLS = switched_on(1, "202s of single events a CPU-second: TLS /")
CLIENTS = switched_on(2, "202s of single events a CPU-second: TLS with")
SIGNED = tuple(Measured("M12", what, "production-redis") for what in ("hints sent", "… taken from the queue"))
NO_KEY, CONNECTS = (Measured("M12", what, "production-redis") for what in ("401s without a key", "new connections"))
GROUPS, ONE, CHECK, HASHES = (
    Measured("M12", what, "replica-redis")
    for what in ("appends of 500", "… of one event", "the check of a key", "… such checks")
)


def joined(measured: tuple[Measured, ...], digits: int = 2) -> tuple[str, str]:
    return "; ".join(one.middle(digits) for one in measured), "; ".join(one.spread(digits) for one in measured)


# By the mark and the text of a row: what its cells of medians and of spreads say. "…": what an earlier run measured.
OF_RATIOS: Final = {
    ("M1", "/ bare Sanic"): (BARE.middle(), BARE.spread()),
    ("M1", "with our group commit"): (GROUP_COMMIT.middle(1), GROUP_COMMIT.spread(1)),
    ("M1", "with one append per request"): (ONE_APPEND.middle(0), ONE_APPEND.spread(0)),
    ("M2", "standard client"): (CLIENT.middle(1), CLIENT.spread(1)),
    ("M2", "our own adapter"): (ADAPTER.middle(), ADAPTER.spread()),
    ("M3", "one decision on leases"): (f"{DECISION.middle(0)} ns", DECISION.spread(0)),
    ("M3", "one Redis script"): (SCRIPT.middle(0), SCRIPT.spread(0)),
    ("M3", "`limits`"): (f"{MOVING.middle(0)} to {SLIDING.middle(0)}, {LIMITS.middle(0)}", ""),
    ("M3", "`throttled-py`"): (f"{THROTTLED.middle(0)}, {THROTTLED_ON_REDIS.middle(0)}", ""),
    ("M3", "a decision with levels /"): (LEVELS.middle(), LEVELS.spread()),
    ("M3", "a decision with levels and shares"): (SHARES.middle(), SHARES.spread()),
    ("M3", "above its share"): (ABOVE_SHARE.middle(0), ABOVE_SHARE.spread(0)),
    ("M4", "a 202, bodies of 100"): (REFUSED_BODY.middle(3), REFUSED_BODY.spread(3)),
    ("M4", "a 202, single events"): (REFUSED_SINGLE.middle(), REFUSED_SINGLE.spread()),
    ("M4", "the same by a handler"): (REFUSED_BY_HANDLER.middle(), REFUSED_BY_HANDLER.spread()),
    ("M5", "`drain_time`, settled"): (goodput(REDIS, "settled"), ""),
    ("M5", "`drain_time`, cold"): (goodput(REDIS, "cold"), ""),
    ("M5", "`drain_time` on Kafka"): (f"{goodput(KAFKA, 'settled')}; {goodput(KAFKA, 'cold')}", ""),
    ("M6", "… `drain_time`, five runs"): (f"{SETTLES.middle(0)} s", SETTLES.spread(0)),
    ("M6", "… `drain_time` on Kafka"): (f"{SETTLES_ON_KAFKA.middle(0)} s", SETTLES_ON_KAFKA.spread(0)),
    ("M6", "highest lag"): (
        f"…; {OVER.middle()}; {OVER_ON_KAFKA.middle()}",
        f"{OVER.spread()}; {OVER_ON_KAFKA.spread()}",
    ),
    ("M6", "swings"): (f"…; {SWINGS.middle(0)}; {SWINGS_ON_KAFKA.middle(0)}", SWINGS.spread(0)),
    ("M6", "p99"): (f"…; {P99.middle(0)}; {P99_ON_KAFKA.middle(0)} ms", ""),
    ("M9", "a sink of 1,500"): (STEPS.middle(), ""),
    ("M9", "… on Kafka"): (STEPS_ON_KAFKA.middle(), ""),
    ("M9", "age of the oldest"): (f"{OLDEST.middle(1)} s; {OLDEST_ON_KAFKA.middle(1)} s", ""),
    ("M10", "frozen"): (f"{FROZEN.middle()}; {FROZEN_ON_KAFKA.middle()}", FROZEN.spread()),
    ("M10", "… until"): (f"{REPAIRED.middle(1)} s; {REPAIRED_ON_KAFKA.middle(0)} s", REPAIRED.spread(0)),
    ("M7", "rows/s of a drain"): (DRAIN.middle(), DRAIN.spread()),
    ("M7", "on Kafka"): (DRAIN_ON_KAFKA.middle(), DRAIN_ON_KAFKA.spread()),
    ("M8", "with 1 million"): (MILLION.middle(), MILLION.spread()),
    ("M8", "with 5 million"): (FIVE_MILLIONS.middle(), FIVE_MILLIONS.spread()),
    ("M8", "a backlog of 2 million"): (BACKLOG.middle(), ""),
    ("M8", "100,000 rows; with"): joined(SHORT_DRAINS),
    ("M8", "5 million stored by day"): joined(BY_DAY_STORED),
    ("M8", "300,000 rows by day"): joined(BY_DAY),
    ("M11", "OTLP, JSON"): (OTLP.middle(1), OTLP.spread(1)),
    ("M11", "OTLP, protobuf"): (PROTOBUF.middle(1), PROTOBUF.spread(1)),
    ("M11", "bulk"): (BULK.middle(1), BULK.spread(1)),
    ("M11", "Loki, JSON; protobuf"): joined((LOKI, LOKI_PROTOBUF)),
    ("M11", "Loki with metadata"): joined((LOKI_METADATA, LOKI_METADATA_PROTOBUF), 1),
    ("M11", "HEC; lines"): joined((HEC, LINES), 1),
    ("M11", "one record a body"): (
        "{}, {}; {}; {}; {}; {}".format(*(one.middle(1) for one in SINGLES)),
        "",
    ),
    ("M12", "API keys"): joined(KEYS),
    ("M12", "… TLS:"): joined(TLS),
    ("M12", "… TLS with certificates"): joined(CLIENTS),
    ("M12", "a 401 without"): (NO_KEY.middle(), NO_KEY.spread()),
    ("M12", "the check of a key"): (f"{CHECK.middle(0)} ns", CHECK.spread(0)),
    ("M12", "… such checks"): (HASHES.middle(1), HASHES.spread(1)),
    ("M12", "new connections"): (CONNECTS.middle(), CONNECTS.spread()),
    ("M12", "signed messages"): joined(SIGNED),
    ("M12", "`WAITAOF`"): (f"{GROUPS.middle()}; {ONE.middle(3)}", f"{GROUPS.spread()}; {ONE.spread(3)}"),
    ("M14", "a Collector 0.165.0 that only decodes"): (
        f"{DECODES.middle()}; {DECODES_PROTOBUF.middle(3)}",
        f"{DECODES.spread()}; {DECODES_PROTOBUF.spread(3)}",
    ),
}

# By page and text of a row of a shorter table: where the longer one has each of its figures (mark, text, which number).
OF_BEHAVIOUR: Final = {
    "bare Sanic handler": [("M1", "bare Sanic", 0)],
    "FastAPI with the same group commit": [("M1", "our group commit", 0)],
    "the event log's standard client": [("M2", "standard client", 0)],
    "one Redis script per request": [("M3", "one Redis script", 0)],
    "| ns": [("M3", "one decision on leases", 0)],
    "a 202, bodies of 100": [("M4", "a 202, bodies of 100", 0), ("M4", "a 202, single events", 0)],
    "the same record in own JSON": [
        *(("M11", text, 0) for text in ("OTLP, JSON", "OTLP, protobuf", "bulk", "Loki, JSON; protobuf")),
        ("M11", "Loki, JSON; protobuf", 1),
    ],
    "the slower of plain COPY": [("M7", "rows/s of a drain", 0), ("M8", "1 million", 0), ("M8", "5 million", 0)],
    "default bands": [("M5", "default bands", 1)],
    "`RATE_POLICY=drain_time`": [
        ("M5", "`drain_time`, settled", 1),
        ("M5", "`drain_time`, cold", 1),
        ("M5", "on Kafka", 1),
        ("M5", "on Kafka", 4),
    ],
}
OF_SWITCHES: Final[dict[str, list[tuple[str, str, int]]]] = {
    "API keys": [("M12", "API keys", place) for place in range(3)],
    "HTTPS at ingest": [("M12", "… TLS:", place) for place in range(3)],
    "certificates of clients": [("M12", "… TLS with certificates", place) for place in range(3)],
    "signed messages": [("M12", "signed messages", place) for place in range(2)],
    "with `WAITAOF`": [("M12", "`WAITAOF`", place) for place in range(2)],
    "`EVENTS_BY_DAY`": [("M8", "5 million stored by day", 1)],
}
OF_COSTS: Final = {
    **{("behaviour.md", text): places for text, places in OF_BEHAVIOUR.items()},
    **{("production.md", f"{text} | "): places for text, places in OF_SWITCHES.items()},
}


def rows(page: str) -> list[list[str]]:
    """The cells of each row of the tables of a page. A row without a mark has that of the row above."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    for above, row in pairwise(found):
        row[0] = row[0] or above[0]
    return found


def row_of_ratios(mark: str, text: str) -> list[str]:
    """The first row of the table of ratios with this mark and text."""
    return next(row for row in rows("adr/bench.md") if row[0] == mark and text in row[1])


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d,]*(?:\.\d+)?", text)


@pytest.mark.parametrize(("mark", "text"), OF_RATIOS)
def test_the_table_of_ratios_has_what_was_measured(mark: str, text: str) -> None:
    _, _, shown, spread, *_ = row_of_ratios(mark, text)
    medians, spreads = OF_RATIOS[mark, text]
    assert re.fullmatch(re.escape(medians).replace("…", r"[\d.; ]+?"), shown), f"{shown!r} is not {medians!r}"
    assert spread.startswith(spreads)


@pytest.mark.parametrize(("page", "text"), OF_COSTS)
def test_a_table_of_costs_is_the_table_of_ratios_in_brief(page: str, text: str) -> None:
    cells = next(row for row in rows(page) if text in f"{row[0]} | {row[1]} | {row[2].partition(' ')[2]}")
    shown = numbers(re.sub(r"1 : |with (one|five) million", "", cells[2]))
    wanted = [numbers(row_of_ratios(mark, other)[2])[place] for mark, other, place in OF_COSTS[page, text]]
    assert len(shown) == len(wanted)
    for one, other in zip(shown, wanted, strict=True):
        digits = len(one.partition(".")[2])  # it may have fewer
        assert float(one.replace(",", "")) == pytest.approx(float(other.replace(",", "")), abs=0.501 * 10**-digits)


def test_the_front_page_says_what_a_refusal_costs() -> None:
    share = float(numbers(row_of_ratios("M4", "a 202, bodies of 100")[2])[0])
    assert 1 / share == pytest.approx(33, abs=3)
    said = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "refusing a body of 100 events costs less than a thirtieth of accepting it" in said
