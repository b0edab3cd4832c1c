"""`python -m pipeline status`: the state of the system in the terminal. It only reads; Celery's commands change."""

import argparse
import json
import sys

from pipeline import wiring
from pipeline.clock import Clock, SystemClock
from pipeline.errors import SettingsError
from pipeline.settings import Settings
from pipeline.sink.dead_letters import count_dead_letters
from pipeline.status import StatusParts, SystemStatus, clock_time, diagnose, read_status, severity, status_document

_EXITS = {"healthy": 0, "degraded": 1, "critical": 2}
_EXIT_UNKNOWN = 3


def exit_status(status: SystemStatus) -> int:
    """0 healthy, 1 degraded, 2 critical, 3 where neither the control store nor the log answers."""
    if status.store_problem is not None and status.log_problem is not None:
        return _EXIT_UNKNOWN
    return _EXITS[severity(diagnose(status))]


def screen(status: SystemStatus) -> str:
    """The state as lines of text."""
    problems = diagnose(status)
    lags = status.lag_by_partition or {}
    paused = "unknown" if status.pauses is None else "paused" if status.pauses else "running"
    spoke = "unknown" if status.controller_age is None else f"last spoke {status.controller_age:.0f} s ago"
    lines = [
        f"{severity(problems).upper()} at {clock_time(status.at)}",
        *(f"! {problem.severity}: {problem.what}\n    look at: {problem.look_at}" for problem in problems),
        f"rate         {_number(status.rate)} events/s ({status.mode.value})",
        f"lag          {_number(status.lag)} events  {' '.join(f'{p}:{lag:,}' for p, lag in sorted(lags.items()))}",
        f"stored       {_number(status.drain_rate)} events/s",
        f"breaker      {status.breaker.value}; consumption {paused}",
        f"controller   {spoke}",
        f"dead letters {_number(status.dead_letters)}",
    ]
    if status.override is not None:
        held = status.override
        lines.append(f"set by hand  {held.rate:,.0f}/s until {clock_time(held.until)} by {held.by}: {held.why}")
    if status.bands.by:
        bands = status.bands
        lines.append(f"bands        {bands.lag_degraded:,} to {bands.lag_critical:,} events, set by {bands.by}")
    lines += [f"  {clock_time(e.at)} {e.kind.value} by {e.by}: {e.why}" for e in status.events[-5:]]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def main(arguments: list[str] | None = None, clock: Clock | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    status_command = parser.add_subparsers(required=True).add_parser("status", help="the state of the whole system")
    status_command.add_argument("--json", action="store_true", help="one JSON object")
    status_command.add_argument("--watch", action="store_true", help="again every second, until interrupted")
    options = parser.parse_args(arguments)
    clock = clock or SystemClock()
    try:
        settings = Settings.from_environ()
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
            text = json.dumps(status_document(status)) if options.json else screen(status)
            clear = "\x1b[H\x1b[2J" if options.watch and not options.json and sys.stdout.isatty() else ""
            sys.stdout.write(f"{clear}{text}\n")
            sys.stdout.flush()
            if not options.watch:
                return exit_status(status)
            clock.sleep(1.0)
    except KeyboardInterrupt:
        return 130
    finally:
        log.close()
        sink.close()


if __name__ == "__main__":
    sys.exit(main())
