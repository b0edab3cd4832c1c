"""Commands: `status` shows the state of the system, and only reads; `migrate` updates the database's schema; `acl`
prints the rules of Redis' users, or checks a user.

Celery's commands change what the system does.
"""

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from pipeline import acl, wiring
from pipeline.arguments import add_migrate, add_status
from pipeline.clock import Clock, SystemClock
from pipeline.control_store.rights import Role
from pipeline.control_store.rights_check import check_rights
from pipeline.errors import SchemaNewerError, SettingsError, SinkUnavailableError, SluiceError
from pipeline.event_fold import FoldedEvents, folded
from pipeline.event_text import clock_time, day_time, log_text, pause_text, rate_text
from pipeline.health.judge import duration
from pipeline.health.runbooks import runbook_place
from pipeline.health.snapshot import HealthInputs
from pipeline.names import BreakerState, Health, Queue
from pipeline.ports.rate import MEASURE_LAG, Explanation, Shadow
from pipeline.ports.schema import Schema
from pipeline.refusals_text import refusals_line
from pipeline.retention import prepare
from pipeline.settings import (
    Settings,
    ignore_variables_of_others,
    misspelled_settings,
    no_system_to_ask,
    system_that_was_stopped,
)
from pipeline.status import StatusContext, SystemStatus, read_status, status_document
from pipeline.text import counted, on_its_lines

_EXIT_UNKNOWN: Final = 3
_EXITS: Final = {Health.HEALTHY: 0, Health.DEGRADED: 1, Health.CRITICAL: 2, Health.UNKNOWN: _EXIT_UNKNOWN}
_EXIT_USAGE: Final = 64  # EX_USAGE of sysexits.h; argparse's own 2 would say "critical"
_MIGRATE_WAIT_SECONDS: Final = 300.0  # for another process that migrates: an index on a large table takes time
_BAR_COLUMNS: Final = 20
_EVENTS_SHOWN: Final = 8


def exit_status(status: SystemStatus) -> int:
    """0 healthy, 1 degraded, 2 critical, 3 if the state is unknown."""
    return _EXITS[status.verdict.status]


def screen(status: SystemStatus, width: int = 100) -> str:
    """The state as lines of text of at most `width` columns."""
    return "\n".join(line for block in _blocks(status, width) for line in block.lines)


def fitted(status: SystemStatus, width: int, height: int) -> str:
    """The same in at most `height` lines. The reasons come first: all else is cut before they are.

    The first reason is never cut, not even in a terminal that is too small for it.
    """
    blocks = _blocks(status, width)
    if sum(_height(block, width) for block in blocks) <= height:
        return "\n".join(line for block in blocks for line in block.lines)
    left, kept = height - 1, set()  # a line says what is cut
    for number, block in sorted(enumerate(blocks), key=lambda one: one[1].rank):
        if block.rank == _FIRST or _height(block, width) <= left:
            kept.add(number)
            left -= _height(block, width)
    lines = [line for number, block in enumerate(blocks) if number in kept for line in block.lines]
    cut = [block for number, block in enumerate(blocks) if number not in kept]
    reasons = sum(block.rank == _REASON for block in cut)
    more = f"{reasons} more reasons, and " if reasons else ""
    said = f"… {more}{sum(len(block.lines) for block in cut)} lines are cut: `status` without --watch has all"
    return "\n".join([*lines, _cut(said, width)])


# What is kept in a small terminal, first to last.
_FIRST: Final = 0.0  # the status, and the first reason
_REASON: Final = 1.0
_ANSWER: Final = 2.0  # to the first reason: where to look
_FIGURE: Final = 3.0
_RUNBOOK: Final = 4.0  # of the first reason
_OTHER_ANSWER: Final = 5.0
_EVENT: Final = 6.0  # to below 7: the newest first, and the steps of the rate last
_DETAIL: Final = 7.0


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines that are kept or cut together."""

    rank: float
    lines: list[str]


def _height(block: _Block, width: int) -> int:
    """The rows that a block needs: a word that is longer than a line takes several."""
    return sum(max(1, -(-len(line) // width)) for line in block.lines)


def _blocks(status: SystemStatus, width: int) -> list[_Block]:
    known = status.inputs
    blocks = [*_reason_blocks(status, width), *_figure_blocks(status, width)]
    if known.override is not None:
        held = known.override
        words = f"{rate_text(held.rate)} until {clock_time(held.until)} by {held.actor}: {held.why}"
        blocks.append(_Block(_FIGURE, _wrapped("override     ", words, width)))
    for what, why in status.unanswered:
        blocks.append(_Block(_FIGURE, _wrapped("unanswered   ", f"{what}: {why}", width)))
    return [*blocks, *_event_blocks(status, width)]


def _event_blocks(status: SystemStatus, width: int) -> list[_Block]:
    """The control events, oldest first. The steps of the rate policy are the first that are left out."""
    rows = folded(status.events)
    by_rank = sorted(enumerate(reversed(rows)), key=lambda one: (one[1].is_routine, one[0]))[:_EVENTS_SHOWN]
    rank_of = {row.newest.id: _EVENT + rank / 100 for rank, (_, row) in enumerate(by_rank)}
    return [
        _Block(rank_of[row.newest.id], [_cut(_event_words(row, status.inputs.at), width)])
        for row in rows
        if row.newest.id in rank_of
    ]


def _event_words(row: FoldedEvents, now: float) -> str:
    newest = row.newest
    day, today = (day_time(at).partition(" ")[0] for at in (newest.at, now))
    when = clock_time(newest.at) if day == today else f"{day} {clock_time(newest.at)}"
    return f"  {when} {row.what}, by {newest.actor}: {newest.why}"


def _reason_blocks(status: SystemStatus, width: int) -> Iterator[_Block]:
    verdict = status.verdict
    yield _Block(_FIRST, [f"{verdict.status.value.upper()} at {clock_time(status.inputs.at)}"])
    for number, problem in enumerate(verdict.problems):
        is_first = number == 0
        yield _Block(_FIRST if is_first else _REASON, _wrapped(f"! {problem.severity}: ", problem.what, width))
        yield _Block(_ANSWER if is_first else _OTHER_ANSWER, _wrapped("    look at: ", problem.look_at, width))
        runbook = runbook_place(problem.code, status.runbooks_url)
        if runbook is not None:
            yield _Block(_RUNBOOK if is_first else _DETAIL, _wrapped("    runbook: ", runbook, width))


def _figure_blocks(status: SystemStatus, width: int) -> Iterator[_Block]:
    known, policy = status.inputs, status.inputs.explanation
    lags = known.lag_by_partition or {}
    spoke = "unknown" if known.controller_age is None else f"last spoke {known.controller_age:.0f} s ago"
    left = "" if not known.lag or known.seconds_to_empty is None else f", empty in {duration(known.seconds_to_empty)}"
    rate = f"{_number(known.rate, 'events/s')} {_bar(known.rate, policy.rate_max)} of {policy.rate_max:,.0f}"
    lag = _measured(known.lag, "event" if known.lag == 1 else "events", policy, MEASURE_LAG)
    if known.is_controller_silent and known.store_problem is None:
        lag = "unknown while the controller is silent" if known.lag is None else f"{lag}; by the log's own commits"
    yield _Block(_FIGURE, _wrapped("offered      ", _traffic(known), width))
    yield _Block(_DETAIL, [*_levels(known), *_protocols(known), *_refused(status, width)])
    yield _Block(_FIGURE, _wrapped("rate         ", f"{rate}: {known.rate_decided_by}", width))
    yield _Block(_DETAIL, _wrapped("policy       ", f"{policy.policy}: {policy.sentence}", width))
    yield _Block(_DETAIL, list(_figures(policy, width)))
    yield _Block(_DETAIL, [] if known.shadow is None else list(_wrapped("shadow       ", _shadow(known.shadow), width)))
    yield _Block(_DETAIL, [f"event log    {log_text(known.event_log, known.log_copies)}"])
    yield _Block(_FIGURE, _wrapped("lag          ", lag, width))
    yield _Block(_DETAIL, [f"  partition {partition:<3}{lag:>9,}" for partition, lag in sorted(lags.items())])
    yield _Block(_FIGURE, [f"stored       {_number(known.drain_rate, 'events/s')}{left}"])
    yield _Block(_FIGURE, _wrapped("breaker      ", f"{known.breaker.value}; consumption {_consumption(known)}", width))
    yield _Block(_FIGURE, [f"controller   {spoke}"])
    yield _Block(_FIGURE, _wrapped("dead letters ", _dead_letters(status), width))


def _shadow(shadow: Shadow) -> str:
    told = shadow.record.explanation
    reason = f": {told.reason}" if told.reason else ""
    return f"{told.policy} would admit {rate_text(shadow.rate)}{reason} ({shadow.mode.value})"


def _figures(policy: Explanation, width: int) -> Iterator[str]:
    """A line for each figure of the whole system, with the thresholds on it."""
    for figure in policy.figures:
        if figure.partition is None:
            words = _measured(figure.value, figure.unit, policy, figure.name)
            yield from _wrapped(f"  {figure.label:<11}", words, width)


def _measured(value: float | None, unit: str, policy: Explanation, measure: str) -> str:
    """A value, and the thresholds on it: with a bar up to the worst of them."""
    thresholds = [one for one in policy.thresholds if one.measure == measure]
    if not thresholds:
        return _figure(value, unit)
    levels = ", ".join(f"{one.label} {_figure(one.value)}" for one in thresholds)
    return f"{_figure(value, unit)} {_bar(value, thresholds[-1].value)} {levels}"


def _traffic(known: HealthInputs) -> str:
    traffic = known.traffic
    if traffic is None:
        return "unknown"
    return (
        f"{_number(traffic.offered, 'events/s')}; admitted {traffic.admitted:,.0f}, refused {traffic.refused:,.0f} "
        f"({100 * traffic.refused_share:.0f} % in the {traffic.share_time})"
    )


def _levels(known: HealthInputs) -> Iterator[str]:
    """A line for each level, if levels are on."""
    if known.traffic is not None:
        for level, one in known.traffic.levels.items():
            share = f"refused {100 * one.refused_share:.0f} %"
            yield f"  {level.label:<11}{_number(one.admitted + one.refused, 'events/s')}, {share}"


def _protocols(known: HealthInputs) -> Iterator[str]:
    """A line for each protocol that is used now, if another than Sluice's own was."""
    if known.traffic is not None:
        for name, one in known.traffic.protocols.items():
            if not (one.accepted or one.refused or one.rejected):
                continue
            rejected = f", rejected {one.rejected:,.0f}" if one.rejected else ""
            offered = _number(one.accepted + one.refused, "events/s")
            yield f"  {name.value:<10} {offered}, refused {one.refused:,.0f}{rejected}"


def _refused(status: SystemStatus, width: int) -> Iterator[str]:
    """The accounts that were refused, if there are any."""
    if status.refusals is not None and status.refusals.total.requests:
        yield from _wrapped("refused to   ", refusals_line(status.refusals), width)


def _consumption(known: HealthInputs) -> str:
    pauses = known.pauses or ()
    if not pauses:
        return known.consumption
    if known.consumption == "paused":
        return f"paused ({', '.join(pause_text(pause.name, pause.partition) for pause in pauses)})"
    of_partitions = (f"partition {pause.partition} ({pause_text(pause.name, None)})" for pause in pauses)
    return f"{known.consumption}; paused: {', '.join(of_partitions)}"


def _dead_letters(status: SystemStatus) -> str:
    if status.dead_letters is None and status.inputs.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        return "not asked for while the breaker is open"
    if status.dead_letters:
        conflicts = status.dead_letter_conflicts
        words = f"{counted(conflicts or 0, 'conflict')} (an eventId that is stored with other content)"
        held = f", of them {words}" if conflicts else ""
        return (
            f"{status.dead_letters:,}{held}; the table dead_letters says why; `celery -A tasks.app control "
            "replay_dead_letters --dry-run` says how many can be stored now"
        )
    return _number(status.dead_letters)


def _bar(value: float | None, whole: float) -> str:
    """A part of a whole, as a bar that is readable without colour."""
    share = 0.0 if value is None or whole <= 0 else min(1.0, value / whole)
    filled = round(share * _BAR_COLUMNS)
    return f"[{'#' * filled}{'.' * (_BAR_COLUMNS - filled)}]"


def _wrapped(head: str, words: str, width: int) -> list[str]:
    """Words after a head, on as many lines as they need."""
    return textwrap.wrap(
        head + words, max(width, 40), subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
    )


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(1, width - 1)]}…"


def _figure(value: float | None, unit: str = "") -> str:
    """A value with as many digits as it needs."""
    if value is None or value >= 10 or value == int(value):
        return _number(value, unit)
    return f"{value:.1f} {unit}".rstrip()


def _number(value: float | None, unit: str = "") -> str:
    return "unknown" if value is None else f"{value:,.0f} {unit}".rstrip()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(_EXIT_USAGE, f"{self.prog}: error: {message}\n")


def main(arguments: list[str] | None = None, clock: Clock | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _Parser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    add_status(commands.add_parser("status", help="show the state of the whole system"))
    add_migrate(commands.add_parser("migrate", help="update the database's schema"))
    acl_command = commands.add_parser(
        "acl",
        help="print the rules of Redis' users, or check a user",
        description="Print the rules of Redis' users (docs/redis-acl.md): `control` for REDIS_URL, `log` for "
        "EVENT_LOG_URL, `both` if one server is both. `check ROLE`: ask both servers if the users of these URLs "
        "have the rights of that role. `page`: print docs/redis-acl.md. Exit status: 0, 1 if a right is missing or "
        "a server could not be asked, 2 if a setting is wrong.",
    )
    acl_command.add_argument("what", choices=[*acl.SERVERS, "check", "page"])
    acl_command.add_argument("role", nargs="?", choices=list(Role), help="only this role; with `check` it is needed")
    acl_command.add_argument(
        "--passwords", type=Path, metavar="FOLDER", help="a file for each user, as sluice-ingest; only hashes are shown"
    )
    acl_command.add_argument("--aclfile", action="store_true", help="lines of an aclfile in place of commands")
    options = parser.parse_args(arguments)
    if options.command == "migrate":
        return _migrate()
    if options.command == "acl":
        if options.what == "check" and options.role is None:
            acl_command.error("check needs a role")
        return _acl(options)
    return _status(options, clock or SystemClock())


def _migrate() -> int:
    for words in (ignore_variables_of_others(), misspelled_settings()):
        if words is not None:
            sys.stderr.write(f"migrate: {words}\n")
    try:
        settings = Settings.for_commands()
        owner = replace(settings, database_url=settings.migrate_database_url or settings.database_url)
        schema = wiring.make_schema(owner)
        user_url = settings.database_url if settings.migrate_database_url else ""
        unchecked = _why_unchecked(schema, user_url)  # now if the user exists, else when it is made
        try:
            for name in schema.migrate(wait_seconds=_MIGRATE_WAIT_SECONDS):
                sys.stdout.write(f"applied {name}\n")
        except SchemaNewerError as error:  # this version works with it
            sys.stderr.write(f"migrate: {error}\n")
        done = schema.give_rights(user_url) if user_url else None
        if done is not None:
            sys.stdout.write(f"{done}\n")
        if unchecked and (unchecked := _why_unchecked(schema, user_url)):
            sys.stderr.write(f"migrate: not checked whether DATABASE_URL names the same database: {unchecked}\n")
        for words in prepare(settings, schema):
            sys.stdout.write(f"{words}\n")
    except SettingsError as error:
        sys.stderr.write(f"migrate: {error}\n")
        return 2
    except SluiceError as error:
        sys.stderr.write(f"migrate: {error}\n")
        return 1
    sys.stdout.write("the schema is up to date\n")
    return 0


def _why_unchecked(schema: Schema, user_url: str) -> str:
    """Compare the user's database; returns why it can't be compared, else "". Raises SchemaError if it is another."""
    try:
        if user_url:
            schema.check_same_database(user_url)
    except SinkUnavailableError as error:
        return str(error)
    return ""


def _acl(options: argparse.Namespace) -> int:
    if options.what == "page":
        sys.stdout.write(acl.page())
        return 0
    try:
        settings = Settings.for_commands()
        if options.what == "check":
            return _check_users(settings, Role(options.role))
        roles = tuple(Role) if options.role is None else (Role(options.role),)
        lines = acl.user_lines(settings, options.what, roles, passwords=options.passwords, is_file=options.aclfile)
        sys.stdout.write("".join(f"{line}\n" for line in list(lines)))
    except SettingsError as error:
        sys.stderr.write(f"acl: {error}\n")
        return 2
    if options.passwords is None:
        sys.stderr.write("acl: without --passwords existing users keep theirs, and new users can't log in\n")
    return 0


def _check_users(settings: Settings, role: Role) -> int:
    missing, unasked = check_rights(settings, role)
    for line in (*missing, *unasked):
        sys.stdout.write(f"{line}\n")
    if missing or unasked:
        return 1
    sys.stdout.write(f"no right of the role {role} is missing\n")
    return 0


def _status(options: argparse.Namespace, clock: Clock) -> int:
    problem = no_system_to_ask()
    if problem is not None:
        sys.stderr.write(f"status: {problem}\n")
        return _EXIT_UNKNOWN
    for words in (system_that_was_stopped(), ignore_variables_of_others(), misspelled_settings()):
        if words is not None:
            sys.stderr.write(f"status: {words}\n")
    try:
        settings = Settings.for_commands()
        log = wiring.make_log(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return _EXIT_UNKNOWN
    storage = wiring.make_storage(settings)
    store, events = wiring.make_control_store(settings, reads_keys=False), wiring.make_control_events(settings)
    history, throttle = wiring.make_history(settings), wiring.make_throttle(settings)
    waiting = partial(wiring.make_queues(settings).waiting, Queue.CONTROL)
    memory = wiring.make_counters(settings).memory
    parts = StatusContext(
        settings, clock, store, events, log, history, storage.dead_letters.count, throttle, waiting, memory
    )
    try:
        while True:
            status = read_status(parts)
            width, height = shutil.get_terminal_size((100, 24))
            is_screen = options.watch and not options.json and sys.stdout.isatty()
            if options.json:
                text = json.dumps(status_document(status))
            else:  # the line feed at the end takes a line too
                text = fitted(status, width, height - 1) if is_screen else screen(status, width)
            clear = "\x1b[H\x1b[2J" if is_screen else ""
            sys.stdout.write(f"{clear}{on_its_lines(text)}\n")
            sys.stdout.flush()
            if not options.watch:
                return exit_status(status)
            clock.sleep(1.0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has closed the pipe; otherwise Python reports it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        log.close()
        storage.close()


if __name__ == "__main__":
    sys.exit(main())
