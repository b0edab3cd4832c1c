"""Messages name the sink that is in use: PostgreSQL, or the archive."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.dashboard.view import document_of
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryServer
from pipeline.health.judge import judge
from pipeline.names import BreakerState, ControlEventKind, Mode, PauseReason, SinkName
from pipeline.policies import make_policy
from pipeline.ports.rate import PartitionSample, RateSample
from pipeline.probe import Backoff, ProbeOutcome, probe
from pipeline.settings import Settings
from support.control import control_settings, memory_rig
from support.health import BREAKER, HEALTHY, REFUSING
from tasks.standstill import words

ROOT = Path(__file__).parents[2]
ARCHIVE = "file:///var/lib/sluice/archive"
# These are always about PostgreSQL: it keeps what operators set, whichever the sink is.
ABOUT_POSTGRESQL = (
    "The controller restores them from PostgreSQL at its next tick; until then workers keep what they knew.",
    "PostgreSQL and the network to it",  # chosen by the sink
    "Connections to PostgreSQL that Sluice has open",
    "Connections that PostgreSQL allows, to everybody",
    "PostgreSQL: they are restored from there",
    "the control worker and PostgreSQL: it restores them from there within a period",
    "PostgreSQL is refused, and does not keep what operators set: ",  # beside an archive
    "PostgreSQL's clock is ",
    "PostgreSQL's clock differs by ",
    "facts about PostgreSQL",  # a key of the control store
    "PostgreSQL",  # the host whose clock differs
    # Sessions: those of the control worker are there too
    "%s: PostgreSQL: %s (docs/database.md)",
    "Workers for batches do not start, because PostgreSQL allows too few sessions: ",
    "PostgreSQL has these changes now: %s",
    "PostgreSQL could not store this. Sluice tries again until it can; a Redis flush before that would undo it.",
    "PostgreSQL could not store the end. Sluice tries again until it can; a Redis flush before that would undo it.",
    "not kept in PostgreSQL: %s",
    " PostgreSQL could not store the end of the pause: Sluice tries again until it can.",
    "that log; if its events are given up, as the owner of the tables in PostgreSQL: ",
    # API keys are kept there too.
    " PostgreSQL could not delete them. Sluice tries again until it can; a Redis flush before that would make them "
    "valid again.",
    "neither PostgreSQL nor Redis has the keys now: ",
    "neither PostgreSQL nor Redis could revoke them: nothing was revoked, try it again",
    " Ingest processes know it once PostgreSQL and Redis both answer.",
    "revoked in PostgreSQL only: %s",
    "INGEST_KEYS needs the control store and PostgreSQL",
)


@pytest.mark.parametrize(("url", "name"), [("", SinkName.POSTGRESQL), (ARCHIVE, SinkName.ARCHIVE)])
def test_the_settings_know_the_sink(url: str, name: SinkName) -> None:
    assert Settings(event_sink_url=url).sink_name is name


@pytest.mark.parametrize(
    "changes",
    [
        {"breaker": BreakerState.OPEN, "pauses": (BREAKER,), "rate": 100.0},
        {"breaker": BreakerState.OPEN, "pauses": (BREAKER,), "traffic": replace(REFUSING, refused_share=0.5)},
        {"database_problem": "no space left"},
        {"mode": Mode.DEGRADED, "lag": 16_000},
        {"traffic": replace(REFUSING, refused_share=0.5)},
    ],
)
@pytest.mark.parametrize("policy", ["bands", "drain_time"])
def test_problems_of_health_name_it(changes: dict[str, Any], policy: str) -> None:
    settings = replace(control_settings("redis://nowhere"), rate_policy=policy, event_sink_url=ARCHIVE)
    explanation = make_policy(settings).describe()
    inputs = replace(HEALTHY, **changes, explanation=explanation, sink=settings.sink_name)
    said = [text for problem in judge(inputs).problems for text in (problem.what, problem.look_at)]
    assert not [text for text in said if "PostgreSQL" in text]
    assert re.search("the archive", " ".join(said), re.IGNORECASE)
    assert not any(text[0].islower() for text in said[::2])


def test_the_page_names_it() -> None:
    assert document_of(HEALTHY)["eventSink"] == "PostgreSQL"
    assert document_of(replace(HEALTHY, sink=SinkName.ARCHIVE))["eventSink"] == "the archive"


@pytest.mark.parametrize("policy", ["bands", "drain_time"])
def test_rate_policies_name_it(policy: str) -> None:
    made = make_policy(Settings(rate_policy=policy, event_sink_url=ARCHIVE))
    sample = RateSample(
        seconds=1.0, partitions={0: PartitionSample(2000, 2000)}, ran_dry=True, was_paused=False, last_rate=1000.0
    )
    for explanation in (made.describe(), made.decide(sample, None).explanation):
        said = f"{explanation.sentence} {explanation.reason} {explanation.look_at}"
        assert "PostgreSQL" not in said
        assert "the archive" in said


def test_the_prober_names_it() -> None:
    rig = memory_rig(replace(control_settings("redis://nowhere"), event_sink_url=ARCHIVE), MemoryServer(ManualClock()))
    rig.store.restore([], actor="controller")
    rig.store.pause(PauseReason.BREAKER, actor="drain", why="full")
    backoff = Backoff(rig.settings, ManualClock())
    report = probe(
        rig.store,
        rig.leases,
        lambda: None,
        backoff,
        settings=rig.settings,
        actor="prober",
        troubles=rig.troubles,
    )
    assert report.outcome is ProbeOutcome.LIFTED
    closed = [event for event in rig.events.last(10) if event.kind is ControlEventKind.BREAKER_CLOSED]
    assert [event.why for event in closed] == ["a write to the archive succeeded"]


def test_the_cause_of_a_standstill_names_it() -> None:
    queues, active = {"w": [{"name": "batches"}]}, {"w": [{"name": "sluice.drain", "args": [0]}]}
    said = words(0, queues, {}, active, {}, sink=SinkName.ARCHIVE, drains_max=8)
    assert said.endswith("the event log, Redis or the archive")


def _texts(path: Path) -> list[str]:
    """The text of a file without docstrings and comments."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".js":
        return [line for line in source.splitlines() if not line.strip().startswith(("//", "*", "/*"))]
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_no_other_message_calls_the_sink_postgresql() -> None:
    own = ("pipeline/sink/", "pipeline/settings", "pipeline/names.py")  # adapters, explanations, and the name itself
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for folder in ("pipeline", "tasks", "ingest")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".js") and not str(path.relative_to(ROOT)).startswith(own)
        for text in _texts(path)
        if "PostgreSQL" in text and text not in ABOUT_POSTGRESQL
    ]
    assert found == []
