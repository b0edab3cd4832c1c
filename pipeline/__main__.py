"""`python -m pipeline status`: the state of the system in the terminal. It only reads; Celery's commands change."""

import argparse
import json
import os
import shutil
import sys
import textwrap
from typing import Final

from pipeline import wiring
from pipeline.clock import Clock, SystemClock
from pipeline.errors import SettingsError
from pipeline.event_words import clock_time, event_words, pause_words, rate_words
from pipeline.names import BreakerState
from pipeline.ports.control import paused
from pipeline.settings import Settings, ignore_variables_of_others, no_system_to_ask
from pipeline.sink.dead_letters import count_dead_letters
from pipeline.status import (
    StatusParts,
    SystemStatus,
    diagnose,
    duration,
    read_status,
    severity,
    status_document,
)

_EXITS = {"healthy": 0, "degraded": 1, "critical": 2}
_EXIT_UNKNOWN = 3
_BAR_COLUMNS: Final = 20
_EVENTS_SHOWN: Final = 8


def exit_status(status: SystemStatus) -> int:
    """0 healthy, 1 degraded, 2 critical, 3 where neither the control store nor the log answers."""
    if status.store_problem is not None and status.log_problem is not None:
        return _EXIT_UNKNOWN
    return _EXITS[severity(diagnose(status))]


def screen(status: SystemStatus, width: int = 100) -> str:
    """The state as lines of text of at most `width` columns."""
    problems = diagnose(status)
    lags = status.lag_by_partition or {}
    spoke = "unknown" if status.controller_age is None else f"last spoke {status.controller_age:.0f} s ago"
    left = (
        "" if not status.lag or status.seconds_to_empty is None else f", empty in {duration(status.seconds_to_empty)}"
    )
    bands = status.bands
    lines = [f"{severity(problems).upper()} at {clock_time(status.at)}"]
    for problem in problems:
        lines += _wrapped(f"! {problem.severity}: ", problem.what, width)
        lines += _wrapped("    look at: ", problem.look_at, width)
    rate = f"{_number(status.rate, 'events/s')} {_bar(status.rate, bands.rate_max)} of {bands.rate_max:,.0f}"
    lag = (
        f"{_number(status.lag, 'events')} {_bar(status.lag, bands.lag_critical)} degraded from "
        f"{bands.lag_degraded:,}, critical above {bands.lag_critical:,}"
    )
    lines += [
        *_wrapped("rate         ", f"{rate}: {status.rate_decided_by}", width),
        *_wrapped("lag          ", lag, width),
        *(f"  partition {partition:<3}{lag:>9,}" for partition, lag in sorted(lags.items())),
        f"stored       {_number(status.drain_rate, 'events/s')}{left}",
        *_wrapped("breaker      ", f"{status.breaker.value}; consumption {_consumption(status)}", width),
        f"controller   {spoke}",
        *_wrapped("dead letters ", _dead_letters(status), width),
    ]
    if status.override is not None:
        held = status.override
        words = f"{rate_words(held.rate)} until {clock_time(held.until)} by {held.by}: {held.why}"
        lines += _wrapped("set by hand  ", words, width)
    if bands.by:
        words = (
            f"{rate_words(bands.rate_max)} below a lag of {bands.lag_degraded:,}, {rate_words(bands.rate_min)} above "
            f"{bands.lag_critical:,}; set by {bands.by}: {bands.why}"
        )
        lines += _wrapped("bands        ", words, width)
    for event in status.events[-_EVENTS_SHOWN:]:
        lines.append(_cut(f"  {clock_time(event.at)} {event_words(event)}, by {event.by}: {event.why}", width))
    return "\n".join(lines)


def _consumption(status: SystemStatus) -> str:
    if status.pauses is None:
        return "unknown"
    held = ", ".join(pause_words(pause.name, pause.partition) for pause in status.pauses)
    if not held:
        return "running"
    return f"paused ({held})" if paused(status.pauses) else f"running, but for {held}"


def _dead_letters(status: SystemStatus) -> str:
    if status.dead_letters is None and status.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        return "not asked for while the breaker is open"
    if status.dead_letters:
        conflicts = status.dead_letter_conflicts
        held = f", of them {conflicts:,} conflicts (an eventId that is stored with other content)" if conflicts else ""
        return (
            f"{status.dead_letters:,}{held}; the table dead_letters says why; `control replay_dead_letters --dry-run`"
        )
    return _number(status.dead_letters)


def _bar(value: float | None, whole: float) -> str:
    """How much of a whole, as a bar that reads without colour."""
    share = 0.0 if value is None or whole <= 0 else min(1.0, value / whole)
    filled = round(share * _BAR_COLUMNS)
    return f"[{'#' * filled}{'.' * (_BAR_COLUMNS - filled)}]"


def _wrapped(head: str, words: str, width: int) -> list[str]:
    """Words behind a head, on as many lines as they need."""
    return textwrap.wrap(
        head + words, max(width, 40), subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
    )


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(1, width - 1)]}…"


def _number(value: float | None, unit: str = "") -> str:
    return "unknown" if value is None else f"{value:,.0f} {unit}".rstrip()


def main(arguments: list[str] | None = None, clock: Clock | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    status_command = parser.add_subparsers(required=True).add_parser("status", help="the state of the whole system")
    status_command.add_argument("--json", action="store_true", help="one JSON object")
    status_command.add_argument("--watch", action="store_true", help="again every second, until interrupted")
    options = parser.parse_args(arguments)
    clock = clock or SystemClock()
    problem = no_system_to_ask()
    if problem is not None:
        sys.stderr.write(f"status: {problem}\n")
        return _EXIT_UNKNOWN
    ignored = ignore_variables_of_others()
    if ignored is not None:
        sys.stderr.write(f"status: {ignored}\n")
    try:
        settings = Settings.for_commands()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return _EXIT_UNKNOWN
    sink = wiring.make_sink(settings)
    log = wiring.make_log(settings)
    store, events = wiring.make_control_store(settings), wiring.make_control_events(settings)
    parts = StatusParts(settings, clock, store, events, log, lambda: count_dead_letters(sink))
    try:
        while True:
            status = read_status(parts)
            width = shutil.get_terminal_size((100, 24)).columns
            text = json.dumps(status_document(status)) if options.json else screen(status, width)
            clear = "\x1b[H\x1b[2J" if options.watch and not options.json and sys.stdout.isatty() else ""
            sys.stdout.write(f"{clear}{text}\n")
            sys.stdout.flush()
            if not options.watch:
                return exit_status(status)
            clock.sleep(1.0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read this has seen enough; Python would complain of it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        log.close()
        sink.close()


if __name__ == "__main__":
    sys.exit(main())
