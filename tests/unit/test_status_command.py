"""The status command's words and exit status."""

import json
import os
import subprocess
import sys
import termios
from dataclasses import replace
from typing import Any

import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from pipeline.__main__ import exit_status, fitted, main
from pipeline.__main__ import screen as screen_of
from pipeline.health.judge import judge
from pipeline.health.snapshot import HealthInputs, LevelTraffic, ProtocolTraffic, Traffic
from pipeline.names import BreakerState, ControlEventKind, Level, Mode, PauseReason, ProtocolName, Severity
from pipeline.ports.control import Alarm, ControlEvent, Override, Pause
from pipeline.status import SystemStatus, inputs_document
from support.health import HEALTHY, NOW


def screen(inputs: HealthInputs, width: int = 100, **more: Any) -> str:
    return screen_of(SystemStatus(inputs, **more), width)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0),
        ({"controller_age": None}, 1),
        ({"store_problem": "refused"}, 1),
        ({"log_problem": "refused"}, 2),
        ({"log_problem": "refused", "store_problem": "refused"}, 3),
    ],
)
def test_the_exit_status_tells_how_bad_it_is(changes: dict[str, Any], expected: int) -> None:
    assert exit_status(SystemStatus(replace(HEALTHY, **changes))) == expected


def test_a_rate_set_by_hand_is_shown_with_its_end() -> None:
    text = screen(replace(HEALTHY, override=Override(300.0, NOW + 60, "ann@host", "a test", NOW)))
    assert "override     300/s until 22:14:20 UTC by ann@host: a test" in text
    assert text.startswith("HEALTHY at 22:13:20 UTC")


def test_a_single_copy_is_named_and_copies_are_counted() -> None:
    for copies, words in ((1, "Redis Streams, single copy"), (2, "Redis Streams, 2 copies")):
        inputs = replace(HEALTHY, log_copies=copies)
        assert f"event log    {words}" in screen(inputs)
        assert inputs_document(inputs, judge(inputs))["logCopies"] == copies


def test_levels_are_shown_where_they_are_on() -> None:
    levels = {Level.DEBUG: LevelTraffic(0.0, 400.0), Level.ERROR: LevelTraffic(50.0, 0.0)}
    traffic = Traffic(50.0, 400.0, 0.5, 0.0, levels=levels)
    lines = screen(replace(HEALTHY, traffic=traffic)).splitlines()
    assert [line for line in lines if line.startswith(("  debug", "  error"))] == [
        "  debug      400 events/s, refused 100 %",
        "  error      50 events/s, refused 0 %",
    ]
    document = inputs_document(replace(HEALTHY, traffic=traffic), judge(HEALTHY))
    assert document["levels"]["debug"] == {"admitted": 0.0, "refused": 400.0, "refusedShare": 1.0}
    without = replace(HEALTHY, traffic=replace(traffic, levels={}))
    assert "debug" not in screen(without)
    assert inputs_document(without, judge(HEALTHY))["levels"] is None


def test_protocols_are_shown_if_others_are_used() -> None:
    protocols = {
        ProtocolName.EVENTS: ProtocolTraffic(40.0, 10.0, 0.0),
        ProtocolName.OTLP: ProtocolTraffic(1200.0, 0.0, 2.5),
        ProtocolName.ELASTICSEARCH: ProtocolTraffic(3.0, 0.0, 0.0),
    }
    traffic = Traffic(50.0, 400.0, 0.5, 0.0, protocols=protocols)
    lines = screen(replace(HEALTHY, traffic=traffic)).splitlines()
    assert [line for line in lines if line.startswith(("  events", "  otlp", "  elastic"))] == [
        "  events     50 events/s, refused 10",
        "  otlp       1,200 events/s, refused 0, rejected 2",
        "  elasticsearch 3 events/s, refused 0",
    ]
    document = inputs_document(replace(HEALTHY, traffic=traffic), judge(HEALTHY))
    assert document["protocols"]["otlp"] == {"accepted": 1200.0, "refused": 0.0, "rejected": 2.5}
    without = replace(HEALTHY, traffic=replace(traffic, protocols={}))
    assert "otlp" not in screen(without)
    assert inputs_document(without, judge(HEALTHY))["protocols"] is None


def test_a_protocol_that_nobody_uses_now_has_no_line() -> None:
    protocols = {name: ProtocolTraffic(0.0, 0.0, 0.0) for name in (ProtocolName.EVENTS, ProtocolName.LINES)}
    traffic = Traffic(0.0, 0.0, 0.0, 0.0, protocols=protocols | {ProtocolName.GELF: ProtocolTraffic(0.0, 0.0, 2.0)})
    lines = screen(replace(HEALTHY, traffic=traffic)).splitlines()
    assert [line for line in lines if line.startswith(("  events", "  lines", "  gelf"))] == [
        "  gelf       0 events/s, refused 0, rejected 2"
    ]


def test_partitions_that_are_paused_are_named() -> None:
    gap = Pause(PauseReason.LOG_GAP, 5, NOW - 10, "worker/2", "a hole", partition=3)
    assert "\nbreaker      closed; consumption running; paused: partition 3 (log gap)\n" in screen(
        replace(HEALTHY, pauses=(gap,))
    )


def test_one_event_is_no_plural() -> None:
    assert "\nlag          1 event [" in screen(replace(HEALTHY, lag=1))
    assert "\nlag          2 events [" in screen(replace(HEALTHY, lag=2))
    # And while the controller is silent, it is said from where the lag is, or why it is not known
    silent = replace(HEALTHY, controller_age=60.0)
    assert "by the log's own commits" in screen(replace(silent, lag=2), 300)
    assert "\nlag          unknown while the controller is silent" in screen(replace(silent, lag=None))
    assert "of them 1 conflict (an eventId" in screen(HEALTHY, 300, dead_letters=7, dead_letter_conflicts=1)


def test_conflicts_are_told_apart_from_other_dead_letters() -> None:
    text = screen(HEALTHY, 300, dead_letters=7, dead_letter_conflicts=2)
    assert "dead letters 7, of them 2 conflicts (an eventId that is stored with other content)" in text
    assert "conflicts" not in screen(HEALTHY, 300, dead_letters=7, dead_letter_conflicts=0)


def test_with_no_server_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # Given addresses where nobody listens
    for name in ("REDIS_URL", "EVENT_LOG_URL"):
        monkeypatch.setenv(name, "redis://127.0.0.1:1/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    # When it is asked
    status = main(["status", "--json"])
    # Then it cannot tell, and says what is away
    assert status == 3
    assert len(json.loads(capsys.readouterr().out)["reasons"]) == 3


def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost() -> None:
    # Given long reasons
    why = "a reason of many words " * 10
    status = replace(HEALTHY, log_problem=why, override=Override(300.0, NOW + 60, "ann@host", why, NOW))
    text = screen(status, 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert " ".join(text.split()).count("a reason of many words") == 20


def test_bars_show_shares_without_colour() -> None:
    explained = replace(HEALTHY.explanation, reason="lag is critical")
    text = screen(replace(HEALTHY, rate=250.0, lag=60_000, mode=Mode.CRITICAL, explanation=explained))
    assert "250 events/s [#####...............] of 1,000: lag is critical" in text
    assert "60,000 events [####################] degraded from 10,000, critical above 50,000" in text
    assert "unknown [....................]" in screen(replace(HEALTHY, lag=None))


def test_an_outage_on_one_screen_says_each_thing_once() -> None:
    # Given an open breaker beneath a pause by hand
    error = '5 failures in a row until 22:13:10 UTC: no connection to PostgreSQL: connection to server at "db" failed'
    breaker = Pause(PauseReason.BREAKER, 1, NOW - 10, "batches@host", error)
    by_hand = Pause(PauseReason.OPERATOR, 2, NOW - 5, "ann@host", "moving the disk")
    opened = ControlEvent("1", NOW - 10, ControlEventKind.BREAKER_OPENED, "batches@host", error, {"reason": "breaker"})
    changed = ControlEvent(
        "2", NOW - 10, ControlEventKind.RATE_CHANGED, "batches@host", "the breaker opened",
        {"rate": "100", "previous": "1000", "mode": "normal", "decided_by": "breaker"},
    )  # fmt: skip
    text = screen(
        replace(
            HEALTHY, breaker=BreakerState.OPEN, pauses=(breaker, by_hand), rate=100.0, drain_rate=0.0,
        ),
        120, events=(opened, changed),
    )  # fmt: skip
    # Then the rate says that it is the breaker's, and no number promises or puzzles
    assert "100 events/s [##..................] of 1,000: breaker is open" in text
    assert "open; consumption paused (breaker, operator)" in text
    assert "dead letters not asked for while the breaker is open" in text
    assert "22:13:10 UTC Rate 1,000 → 100/s (breaker is open), by batches@host: the breaker opened" in text
    assert "normal" not in text


NIGHT = SystemStatus(
    replace(
        HEALTHY, breaker=BreakerState.OPEN, rate=100.0, mode=Mode.CRITICAL, lag=60_000, drain_rate=0.0,
        lag_by_partition=dict.fromkeys(range(8), 7_500), override=Override(300.0, NOW + 60, "ann@host", "a test", NOW),
        pauses=(Pause(PauseReason.BREAKER, 1, NOW - 10, "batches@host", "no connection to PostgreSQL: refused " * 4),),
        traffic=Traffic(100.0, 900.0, 0.9, 0.0),
    ),
    events=tuple(
        ControlEvent(f"{i}", NOW - 60 + i, ControlEventKind.BREAKER_OPENED, "batches@host", "why " * 40, {})
        for i in range(50)
    ),
)  # fmt: skip


def test_a_small_terminal_has_the_reasons_first_and_whole() -> None:
    # Given three reasons and more figures and events than fit on 80 x 24
    lines = fitted(NIGHT, 80, 23).splitlines()
    # Then it fits, and begins with the status and the first reason
    assert len(lines) <= 23
    assert max(len(line) for line in lines) <= 80
    assert lines[0] == "CRITICAL at 22:13:20 UTC"
    assert lines[1].startswith("! critical: PostgreSQL fails since 22:13:10 UTC")
    # And no word of a reason is missing, nor where to look first, nor the figures
    text = " ".join(" ".join(lines).split())
    for problem in NIGHT.verdict.problems:
        assert problem.what in text
    assert NIGHT.verdict.problems[0].look_at.split(". Once")[0] in text
    assert all(any(line.startswith(head) for line in lines) for head in ("offered", "rate", "lag", "stored", "breaker"))
    # And the end says what is cut
    assert lines[-1].startswith("\u2026 ")
    assert "lines are cut" in lines[-1]


def test_events_are_cut_from_the_oldest() -> None:
    status = replace(NIGHT, inputs=HEALTHY)
    lines = fitted(status, 80, 14).splitlines()
    times = [line.split()[0] for line in lines if line.startswith("  22:")]
    assert times == sorted(times)
    assert times[-1] == "22:13:09"
    assert 1 <= len(times) < 8


def stepped(number: int) -> ControlEvent:
    """A step of the rate policy, one each period."""
    data = {"previous": f"{1000 - number}", "rate": f"{999 - number}", "mode": "degraded", "decided_by": "lag"}
    return ControlEvent(
        f"s{number}", NOW - 600 + 5 * number, ControlEventKind.RATE_CHANGED, "control@host", "lag", data
    )


def test_steps_of_the_rate_are_one_line_and_do_not_push_out_what_is_rare() -> None:
    # Given a breaker that opened an hour ago, and a rate that steps in every period since then
    opened = ControlEvent("o", NOW - 4000, ControlEventKind.BREAKER_OPENED, "batches@host", "refused", {})
    status = SystemStatus(HEALTHY, events=(opened, *(stepped(number) for number in range(100))))
    # Then both are a line
    lines = [line.strip() for line in screen_of(status, 150).splitlines() if " UTC " in line and ", by " in line]
    assert lines == [
        "21:06:40 UTC Breaker opened, by batches@host: refused",
        "22:11:35 UTC Rate 1,000 → 900/s in 100 steps since 22:03:20 UTC, between 900/s and 1,000/s (lag is degraded), "
        "by control@host: lag",
    ]
    # And where only one fits, it is the rare one
    seen = [tuple(word in fitted(status, 120, height) for word in ("opened", "steps since")) for height in range(5, 30)]
    assert (True, False) in seen
    assert (False, True) not in seen
    assert (True, True) in seen


def test_an_event_of_another_day_has_its_date() -> None:
    opened = ControlEvent("o", NOW - 86_400, ControlEventKind.BREAKER_OPENED, "batches@host", "refused", {})
    assert "  2023-11-13 22:13:20 UTC Breaker opened" in screen_of(SystemStatus(HEALTHY, events=(opened,)), 120)


def test_a_terminal_that_is_large_enough_shows_all() -> None:
    assert fitted(NIGHT, 120, 100) == screen_of(NIGHT, 120)
    assert len(screen_of(NIGHT, 120).splitlines()) > 23


def test_the_first_reason_is_whole_where_nothing_else_fits() -> None:
    alarms = tuple(Alarm("new", Severity.CRITICAL, f"{i} " + "word " * 90, "there", i) for i in range(32))
    status = SystemStatus(replace(HEALTHY, alarms=alarms))
    lines = fitted(status, 80, 5).splitlines()
    assert " ".join(" ".join(lines).split()).count("word") == 90
    assert "31 more reasons" in lines[-1]
    assert len(fitted(status, 80, 23).splitlines()) <= 23


def test_a_watched_status_does_not_scroll_a_terminal_of_80_by_24() -> None:
    # Given a terminal of 80 x 24, and three servers that do not answer
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 80))
    environ = dict.fromkeys(("REDIS_URL", "EVENT_LOG_URL"), "redis://127.0.0.1:1/0")
    environ["DATABASE_URL"] = "postgresql://127.0.0.1:1/none"
    command = [sys.executable, "-m", "pipeline", "status", "--watch"]
    with subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=environ) as watching:
        os.close(its)
        # When it has drawn itself twice
        drawn = b""
        while drawn.count(CLEAR) < 2:
            drawn += os.read(ours, 65536)
        watching.kill()
    os.close(ours)
    # Then the first drawing begins with the status, and its lines fit
    first = drawn.split(CLEAR)[1].decode()
    assert first.startswith("UNKNOWN at")
    assert first.count("\n") < 24
    assert first.count("! ") == 3


CLEAR = b"\x1b[H\x1b[2J"


def test_what_others_wrote_reaches_the_terminal_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an operator and a problem with escape sequences, as an older version may have stored them
    override = Override(300.0, NOW + 60, "ann\x1b[2J", "a\x9btest", NOW)
    alarm = Alarm("odd", Severity.CRITICAL, "batches@\x1b]0;mine\x07host: it fails", "its log", None)
    status = SystemStatus(replace(HEALTHY, override=override, alarms=(alarm,)))
    monkeypatch.setattr("pipeline.__main__.read_status", lambda _: status)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    main(["status"])
    said = capsys.readouterr().out
    assert "by ann\\x1b[2J: a\\x9btest" in said
    assert "batches@\\x1b]0;mine\\x07host: it fails" in said
    assert not set(said) & set("\x1b\x07\x9b")


def test_a_reader_that_goes_away_is_no_error() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "pipeline", "status", "--watch"], cwd=ROOT, stdout=closed_pipe(), stderr=subprocess.PIPE,
        check=False, timeout=RUN_SECONDS_MAX, env={"REDIS_URL": "redis://127.0.0.1:1/0", "EVENT_LOG_URL": "redis://127.0.0.1:1/0",
                                      "DATABASE_URL": "postgresql://127.0.0.1:1/none"},
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (0, b"")


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_command_that_is_written_wrong_is_not_a_critical_system(capsys: pytest.CaptureFixture[str]) -> None:
    # argparse's own exit status for a wrong word is 2, which would say "critical" here
    with pytest.raises(SystemExit) as ended:
        main(["statsu"])
    assert ended.value.code == 64
    assert "invalid choice: 'statsu'" in capsys.readouterr().err
