"""Remote commands in a worker: who acts, what is a reason, and an answer that is not waited for."""

import getpass
import logging
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import click
import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryLeases, MemoryServer
from pipeline.errors import SinkUnavailableError
from pipeline.names import Mode, PauseReason
from pipeline.ports.control import Pause
from pipeline.settings import Settings
from pipeline.status import SystemStatus
from support.health import HEALTHY
from tasks import commands, remote, remote_client
from tasks.commands import CommandError
from tasks.remote_client import NOT_MINE


def _worker(*queues: str) -> Any:
    """As much of a worker's state as a command looks at."""
    return SimpleNamespace(
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=dict.fromkeys(queues))))
    )


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Ask a control worker to do something, by default with a ticket of its own."""
    settings = Settings()
    parts = SimpleNamespace(
        settings=settings,
        leases=MemoryLeases(settings, MemoryServer()),
        storage=SimpleNamespace(close=lambda: None),
        clock=ManualClock(),
    )
    monkeypatch.setattr(remote, "_context", lambda _: parts)
    tickets = iter(range(100))

    def answer(work: Callable[[Any], Any], *, ticket: str | None = None, queue: str = "control") -> Any:
        return remote._answered(_worker(queue), f"t{next(tickets)}" if ticket is None else ticket, work)

    return answer


def test_only_a_control_worker_with_the_ticket_acts(ask: Callable[..., Any]) -> None:
    done: list[str] = []

    def work(_: Any) -> dict[str, str]:
        done.append("done")
        return {"ok": "done"}

    assert ask(work, ticket="one", queue="batches") == {NOT_MINE: True}
    assert ask(work, ticket="one") == {"ok": "done"}
    assert ask(work, ticket="one") == {NOT_MINE: True}  # another control worker that heard it
    assert "ticket" in ask(work, ticket="")["error"]
    assert done == ["done"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CommandError("the rate is 0"), "the rate is 0"),
        (SinkUnavailableError("PostgreSQL is away"), "not done: PostgreSQL is away"),
        (ZeroDivisionError("x"), "a defect of the worker, see its log: ZeroDivisionError"),
    ],
    ids=["senseless", "away", "defect"],
)
def test_what_goes_wrong_is_an_error_in_words(ask: Callable[..., Any], error: Exception, says: str) -> None:
    def work(_: Any) -> dict[str, str]:
        raise error

    assert ask(work) == {"error": says}


def test_what_takes_long_is_answered_in_time_and_its_end_is_logged(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a command that goes on for longer than the worker's loop waits
    monkeypatch.setattr(remote, "_WAIT_SECONDS_MAX", 0.05)
    may_end = threading.Event()

    def work(_: Any) -> dict[str, str]:
        assert may_end.wait(WAIT_SECONDS_MAX)
        return {"ok": "7 stored"}

    # Then the answer says that it is open, and the log how it ended
    with caplog.at_level(logging.WARNING):
        assert "still running" in ask(work)["ok"]
        assert "7 stored" not in caplog.text
        may_end.set()
        wait_until(lambda: "late answer: 7 stored" in caplog.text, "its end is logged")


def test_the_worker_waits_no_longer_for_commands_that_come_at_once_than_for_one(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given commands that each take as long as PostgreSQL is silent, and a worker whose loop hears all of them at once
    waits: list[float] = []
    clock = ManualClock()

    def wait(seconds: float | None = None) -> None:
        assert seconds is not None
        waits.append(seconds)
        clock.advance(min(seconds, 2.0))
        raise TimeoutError

    under_way = SimpleNamespace(result=wait, add_done_callback=lambda _: None)
    monkeypatch.setattr(remote, "_thread", lambda: SimpleNamespace(submit=lambda _: under_way))
    patience = remote.Patience(clock)
    monkeypatch.setattr(remote, "_patience", lambda: patience)

    # Then the loop, which hands out tasks too, is back as soon as after one
    for _ in range(5):
        assert "still running" in ask(lambda _: {})["ok"]
    assert waits == pytest.approx([3.0, 1.0, 0.0, 0.0, 0.0])
    # And a command that comes after other work is waited for again
    clock.advance(1.0)
    ask(lambda _: {})
    assert waits[-1] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (lambda worker: remote.set_bands(worker, degraded=5, ticket="t"), "set_bands <lag_degraded> <lag_critical>"),
        (lambda worker: remote.replay_dead_letters(worker, ("now",), ticket="t"), "[--dry-run] [limit]"),
        (lambda worker: remote.replay_dead_letters(worker, ("5", "6"), ticket="t"), "[--dry-run] [limit]"),
        (lambda worker: remote.replay_dead_letters(worker, ("0",), ticket="t"), "it takes 1 to 100000 dead letters"),
        (lambda worker: remote.set_rate_limit(worker, rate=0.5, ticket="t"), "it takes 1 to 10000 events/s"),
        (lambda worker: remote.set_rate_limit(worker, rate=math.nan, ticket="t"), "it takes 1 to 10000 events/s"),
        (lambda worker: remote.set_rate_limit(worker, rate=5.0, seconds=1e9, ticket="t"), "it takes 1 to 86400 s"),
        (lambda worker: remote.set_bands(worker, degraded=5, critical=5, ticket="t"), "not below the upper one"),
    ],
)
@pytest.mark.usefixtures("ask")
def test_what_makes_no_sense_changes_nothing(command: Callable[[Any], Any], says: str) -> None:
    # the parts of `ask` have no store that could be changed
    assert says in command(_worker("control"))["error"]


@pytest.mark.parametrize(
    ("words", "given", "why"),
    [
        ((), (), "no reason given"),
        (("until", "noon"), (), "until noon"),
        (("600",), (300.0, 600.0), "no reason given"),  # Celery's echo of the last argument
        (("300",), (300.0, None), "no reason given"),
        (("601",), (300.0, 600.0), "601"),
        (("600", "people"), (300.0, 600.0), "600 people"),
    ],
)
def test_the_words_are_the_reason_but_not_the_last_argument_again(
    words: tuple[str, ...], given: tuple[float | None, ...], why: str
) -> None:
    assert remote._why(words, *given) == why


def test_who_asks_is_named_where_the_user_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    assert remote_client.user_at_host().startswith("uid ")
    assert remote_client.user_at_host().endswith("@box")


def test_every_command_is_known_to_the_asking_side() -> None:
    from celery.worker.control import Panel

    ours = {name for name, handler in Panel.data.items() if handler.__module__ == remote.__name__}
    assert ours == remote_client.OURS


def test_settings_that_make_no_sense_are_one_line_of_celerys_too() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks.app", "inspect", "sluice"], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=RUN_SECONDS_MAX, env={"PATH": "/usr/bin:/bin", "RATE_MAX": "abc"},
    )  # fmt: skip
    assert said.returncode != 0
    assert said.stderr == "celery: invalid settings: RATE_MAX='abc' is not a number\n"


_LAGGING = replace(HEALTHY, lag=1612, lag_by_partition={1: 1600, 0: 12})


@pytest.mark.parametrize(
    ("changes", "last_line"),
    [
        ({}, "together: 1,612 events, stored: 800/s; empty in about 2 s"),
        ({"drain_rate": 1.5}, "together: 1,612 events, stored: 1.5/s; empty in about 18 min"),
        ({"drain_rate": 0.0}, "together: 1,612 events, stored: 0/s; no end in sight"),
        ({"drain_rate": None}, "together: 1,612 events, stored: unknown; no end in sight"),
        (
            {"pauses": (Pause(PauseReason.OPERATOR, 1, 0.0, "ann", "a test"),)},
            "together: 1,612 events, stored: 800/s; consumption is paused: `inspect sluice` says why",
        ),
        ({"lag": 0, "lag_by_partition": {0: 0, 1: 0}}, "together: 0 events, stored: 800/s"),
        (
            {"lag": None, "lag_by_partition": None},
            "The lag is unknown: the event log does not say it for all partitions.",
        ),
        (
            {"lag": None, "lag_by_partition": None, "log_problem": "the event log (Redis) refuses: WRONGTYPE"},
            "The lag is unknown: the event log (Redis) refuses: WRONGTYPE.",
        ),
    ],
)
def test_inspect_lag_says_when_it_will_be_empty(changes: dict[str, Any], last_line: str) -> None:
    lines = remote._lag(SystemStatus(replace(_LAGGING, **changes)))["ok"].splitlines()
    assert lines[-1] == last_line
    assert lines[:-1] == [] or [line.split(":")[0] for line in lines[:-1]] == ["partition 0", "partition 1"]


def test_a_rate_up_to_the_settings_own_can_be_set() -> None:
    # Given a RATE_MAX above the default limit of an override
    settings = Settings(rate_max=20_000.0)
    control = MemoryControlStore(settings, MemoryServer())
    operators = SimpleNamespace(set_bands=lambda bands: None)
    parts: Any = SimpleNamespace(settings=settings, clock=ManualClock(), control_store=control, operators=operators)
    # Then thresholds can be set without a rate, and a rate above it can not
    said = commands.set_bands(parts, "ann", degraded=5000, critical=20_000, rate_max=None, rate_min=None, why="a test")
    assert "20,000/s below a lag of 5,000" in said
    with pytest.raises(CommandError, match=r"it takes 1 to 20000 events/s \(RATE_MAX\)"):
        commands.set_rate_limit(parts, "ann", 20_001.0, 60.0, "a test")


def test_a_dry_run_says_what_a_command_would_do_and_changes_nothing() -> None:
    # Given a rate of 1,000 at a lag of 12,000
    settings, server = Settings(), MemoryServer(clock := ManualClock())
    control = MemoryControlStore(settings, server)
    control.restore([], actor="controller")
    control.publish_rate(
        base_rate=955.0, floor_rate=100.0, mode=Mode.DEGRADED, lag=12_000, lag_known_at=clock.now(), actor="controller"
    )
    # Nothing here could keep a change.
    parts: Any = SimpleNamespace(settings=settings, clock=clock, control_store=control)
    before = (control.state().override, control.state().bands, list(server.content().events))
    # When commands are tried
    rate = commands.set_rate_limit(parts, "ann", 300.0, 60.0, "w", dry_run=True)
    bands = commands.set_bands(
        parts, "ann", degraded=5000, critical=20_000, rate_max=None, rate_min=None, why="w", dry_run=True
    )
    # Then each says what it would do
    assert rate.startswith("Dry run, nothing was changed. At most 300/s would be admitted until ")
    assert rate.endswith("; now it is 955/s.")
    assert bands == (
        "Dry run, nothing was changed. It would be 1,000/s below a lag of 5,000 events, falling to 100/s at 20,000. At "
        "the present lag of 12,000 events that is 580/s (degraded); now it is 955/s."
    )
    assert (control.state().override, control.state().bands, list(server.content().events)) == before
    # An open breaker would limit the rate
    control.pause(PauseReason.BREAKER, actor="drain", why="down")
    assert "At most 100/s would be admitted" in commands.set_rate_limit(parts, "ann", 300.0, 60.0, "w", dry_run=True)
    # And what makes no sense is refused as ever
    with pytest.raises(CommandError, match="it takes 1 to 10000"):
        commands.set_rate_limit(parts, "ann", 0.5, 60.0, "w", dry_run=True)


@pytest.mark.parametrize(
    ("words", "given", "found"),
    [
        ((), (None,), ([None], (), False)),
        (("why",), (60.0,), ([60.0], ("why",), False)),
        (("--dry-run", "why"), (60.0,), ([60.0], ("why",), True)),
        (("--dry-run",), ("dry_run",), ([None], (), True)),  # in the place of an optional number, with Celery's echo
        (("why",), (800.0, "dry_run"), ([800.0, None], ("why",), True)),
    ],
)
def test_the_dry_run_flag_may_stand_in_the_place_of_an_optional_number(words: Any, given: Any, found: Any) -> None:
    assert remote._without_dry_run(words, *given) == found
    read = remote._number_or_dry_run("the time")
    assert (read("60"), read("--dry-run")) == (60.0, "dry_run")
    with pytest.raises(click.UsageError, match="which is not a number"):
        read("soon")
