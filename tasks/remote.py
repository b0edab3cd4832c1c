"""Remote commands: `celery -A tasks.app inspect sluice`, `control pause_consumption`, and so on.

They run in the main process of a worker, beside the other work of its event loop: on a thread. The loop waits for them
three seconds at most, even if several arrive at once. Celery's `control` command accepts no options for them, so an
argument replaces the option: `dry_run`, also as `--dry-run`.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import click
from celery.bin.control import control as control_program
from celery.worker.control import control_command, inspect_command

from pipeline.__main__ import screen
from pipeline.clock import Clock, SystemClock
from pipeline.errors import RecoverableError, SluiceError, about_the_log, in_brief
from pipeline.event_text import rate_text
from pipeline.health.judge import duration
from pipeline.health.snapshot import HealthInputs
from pipeline.names import Queue
from pipeline.ports.control import paused
from pipeline.refusals_text import refusals_text, throttle_document
from pipeline.status import StatusContext, SystemStatus, read_status, status_document
from pipeline.stopped import Hole
from pipeline.text import counted
from tasks import commands, key_commands, late_begins, stopped
from tasks.context import WorkerContext
from tasks.keys import protocols_of
from tasks.remote_client import NOT_MINE

_logger = logging.getLogger(__name__)

_WAIT_SECONDS_MAX: Final = 3.0  # for which the worker's event loop waits for a command, or for several at once
_MADE_UP_FACTOR: Final = 10.0  # one second of the loop's other work allows so many more seconds of waiting
_TICKET_SECONDS: Final = 150.0  # longer than a signed command could be repeated (tasks/signing.py)
_REPLAY_LIMIT: Final = 1000
_DRY_RUN: Final = "dry_run"  # also as --dry-run

Reply = dict[str, Any]

# So that --dry-run reaches the command. Otherwise Celery would reject it as an unknown option.
control_program.context_settings["ignore_unknown_options"] = True


# --- Arguments, parsed by the program that sends the command ------------------------------------------------


def _number(what: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise click.UsageError(f"{what} is {text!r}, which is not a number") from None

    return read


def _number_or_dry_run(what: str) -> Callable[[str], float | str]:
    """An optional number: the flag may stand in its place."""
    read = _number(what)
    return lambda text: _DRY_RUN if is_dry_run(text) else read(text)


def _whole(what: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise click.UsageError(f"{what} is {text!r}, which is not a whole number") from None

    return read


# --- Inspect ----------------------------------------------------------------------------------------------------


@inspect_command(name="sluice")
def inspect_sluice(state: Any, by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Show the state of the whole system: problems, lag, rate, breaker, pauses, latest control events."""
    return _answered(state, ticket, lambda context: _told(_status(context)))


@inspect_command(name="lag")
def inspect_lag(state: Any, by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Show the lag of each partition, the drain rate, and the time until the lag is stored."""
    return _answered(state, ticket, lambda context: _lag(_status(context)))


@inspect_command(name="gap", args=[("partition", _whole("the partition"))], signature="<partition>")
def inspect_gap(state: Any, *, partition: int | None = None, by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Show the offsets of a partition, and those that the event log lost before they were stored."""
    return _look(state, ticket, "gap", partition, stopped.show_gap)


@inspect_command(name="poison", args=[("partition", _whole("the partition"))], signature="<partition>")
def inspect_poison(state: Any, *, partition: int | None = None, by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Show the records for which a partition was paused, each with the reason of the sink."""
    return _look(state, ticket, "poison", partition, stopped.show_poison)


@inspect_command(name="account_limits")
def inspect_account_limits(state: Any, by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Show the accounts with a limit or a weight, by operators and by the settings."""
    return _shown(state, ticket, commands.show_account_limits)


@inspect_command(name="keys")
def inspect_keys(state: Any, by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Show the API keys: their ids, names, protocols and limits."""
    return _shown(state, ticket, key_commands.listed)


@inspect_command(name="throttle", args=[("account", str)], signature="[account]")
def inspect_throttle(state: Any, *, account: str = "", by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Show which accounts were refused in the last 15 minutes, how much, and why."""

    def show(context: WorkerContext) -> tuple[str, dict[str, Any]]:
        refused = context.throttle.reported()
        words = refusals_text(refused, commands.account_of_name(account) if account else None)
        return words, throttle_document(refused, account or None)

    return _shown(state, ticket, show)


def _look(
    state: Any,
    ticket: str,
    name: str,
    partition: int | None,
    show: Callable[[WorkerContext, int], tuple[str, dict[str, Any]]],
) -> Reply:
    if partition is None:
        return {"error": f"a partition is missing: celery -A tasks.app inspect {name} <partition>"}
    return _shown(state, ticket, lambda context: show(context, partition))


def _shown(
    state: Any, ticket: str, show: Callable[[WorkerContext], tuple[str, dict[str, Any] | list[dict[str, Any]]]]
) -> Reply:
    """The reply with what `show` returns: words for people, who see `ok`, and the document for programs (--json)."""

    def work(context: WorkerContext) -> Reply:
        words, document = show(context)
        return {"ok": words, "document": document}

    return _answered(state, ticket, work)


def _status(context: WorkerContext) -> SystemStatus:
    return read_status(
        StatusContext(
            context.settings,
            context.clock,
            context.control_store,
            context.events,
            context.log,
            context.history,
            context.dead_letters.count,
            context.throttle,
        )
    )


def _told(status: SystemStatus) -> Reply:
    # People see `ok`; programs (--json) get the whole document.
    return {"ok": screen(status), "document": status_document(status)}


def _lag(status: SystemStatus) -> Reply:
    lags, pace = status.inputs.lag_by_partition, status.inputs.drain_rate
    known = status_document(status)
    document = {name: known[name] for name in ("consumerLag", "lagByPartition", "drainRate", "secondsToEmpty")}
    if lags is None:
        problem = status.inputs.log_problem
        why = (
            "the event log does not say it for all partitions" if problem is None else about_the_log(in_brief(problem))
        )
        return {"ok": f"The lag is unknown: {why}.", "document": document}
    lines = [f"partition {partition}: {counted(lag, 'event')}" for partition, lag in sorted(lags.items())]
    stored = "unknown" if pace is None else rate_text(pace)
    lines.append(f"together: {counted(sum(lags.values()), 'event')}, stored: {stored}{_until_empty(status.inputs)}")
    return {"ok": "\n".join(lines), "document": document}


def _until_empty(known: HealthInputs) -> str:
    if not known.lag:
        return ""
    if known.pauses:
        what = "consumption" if paused(known.pauses) else "a partition"
        return f"; {what} is paused: `inspect sluice` says why"
    return "; no end in sight" if known.seconds_to_empty is None else f"; empty in {duration(known.seconds_to_empty)}"


# --- Control ------------------------------------------------------------------------------------------------------


@control_command(variadic="words", signature="[reason …]")
def pause_consumption(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Pause consumption until an operator resumes it."""
    return _done(state, ticket, lambda context: commands.pause(context, by, _why(words)))


@control_command(variadic="words", signature="[reason …]")
def resume_consumption(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Resume consumption: lift the pauses by operators, for poison and for log gaps; not the breaker's."""
    return _done(state, ticket, lambda context: commands.resume(context, by, _why(words)))


@control_command(
    args=[("rate", _number("the rate")), ("seconds", _number_or_dry_run("the time"))], variadic="words",
    signature="<events/s> [seconds] [--dry-run] [reason …]",
)  # fmt: skip
def set_rate_limit(
    state: Any, *, rate: float | None = None, seconds: float | str | None = None, words: Any = (),
    by: str = "", ticket: str = "", **_: Any,
) -> Reply:  # fmt: skip
    """Set a fixed rate for a time; the lag has no influence."""
    if rate is None:
        return _usage("a rate is missing", "set_rate_limit <events/s> [seconds] [--dry-run] [reason …]")
    [for_seconds], left, dry_run = _without_dry_run(words, seconds)
    why = _why(left, rate, for_seconds)
    return _done(
        state, ticket,
        lambda context: commands.set_rate_limit(context, by, rate, for_seconds, why, dry_run=dry_run),
    )  # fmt: skip


@control_command(variadic="words", signature="[reason …]")
def clear_rate_limit(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """End the rate that an operator set: the rate policy decides again."""
    return _done(state, ticket, lambda context: commands.clear_rate_limit(context, by, _why(words)))


@control_command(
    args=[
        ("degraded", _whole("the lower threshold")), ("critical", _whole("the upper threshold")),
        ("rate_max", _number_or_dry_run("the highest rate")), ("rate_min", _number_or_dry_run("the lowest rate")),
    ],
    variadic="words", signature="<lag_degraded> <lag_critical> [rate_max] [rate_min] [--dry-run] [reason …]",
)  # fmt: skip
def set_bands(
    state: Any, *, degraded: int | None = None, critical: int | None = None, rate_max: float | str | None = None,
    rate_min: float | str | None = None, words: Any = (), by: str = "", ticket: str = "", **_: Any,
) -> Reply:  # fmt: skip
    """Set the thresholds of the lag, and the highest and lowest rate."""
    if degraded is None or critical is None:
        return _usage(
            "both thresholds are needed",
            "set_bands <lag_degraded> <lag_critical> [rate_max] [rate_min] [--dry-run] [reason …]",
        )
    [high, low], left, dry_run = _without_dry_run(words, rate_max, rate_min)
    why = _why(left, degraded, critical, high, low)
    return _done(
        state, ticket,
        lambda context: commands.set_bands(
            context, by, degraded=degraded, critical=critical, rate_max=high, rate_min=low, why=why, dry_run=dry_run
        ),
    )  # fmt: skip


@control_command(variadic="words", signature="[reason …]")
def reset_bands(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Go back to the bands of the settings."""
    return _done(state, ticket, lambda context: commands.reset_bands(context, by, _why(words)))


_ACCOUNT_LIMIT = "set_account_limit <account> <events/s|none> [--weight <number>] [reason …]"


@control_command(
    variadic="words", signature="<account> <events/s|none> [--weight <number>] [reason …]"
)  # fmt: skip
def set_account_limit(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Set the highest rate of an account, and its share as a multiple of that of others."""
    left = [str(word) for word in words]
    try:
        weight = _number_among(left, "weight")
        account, rate = left[0], None if left[1].lower() == "none" else float(left[1])
    except (IndexError, ValueError):
        return _usage("an account, and a number or none are needed", _ACCOUNT_LIMIT)
    why = _why(left[2:])
    return _done(
        state,
        ticket,
        lambda context: commands.set_account_limit(context, by, account, rate=rate, weight=weight, why=why),
    )


@control_command(variadic="words", signature="<account> [reason …]")
def clear_account_limit(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """End what an operator set for an account: the settings apply again."""
    if not words:
        return _usage("an account is missing", "clear_account_limit <account> [reason …]")
    account, why = str(words[0]), _why(words[1:])
    return _done(state, ticket, lambda context: commands.clear_account_limit(context, by, account, why))


_KEYS_CREATE = (
    "keys_create <name> [--rate <events/s>] [--protocols <a,b>] [--level <level>] [--days <number>] [reason …]"
)


@control_command(variadic="words", signature=_KEYS_CREATE.partition(" ")[2])
def keys_create(
    state: Any, words: Any = (), *, key_id: str = "", digest: str = "", by: str = "", ticket: str = "", **_: Any
) -> Reply:
    """Make an API key for a writer, and show it once."""
    left = [str(word) for word in words]
    try:
        rate, days = _number_among(left, "rate"), _number_among(left, "days")
        protocols, level = _option_among(left, "protocols") or "", _option_among(left, "level")
        name = left[0]
    except (IndexError, ValueError):
        return _usage("a name is missing, or an option has no value", _KEYS_CREATE)
    why = _why(left[1:])
    return _done(
        state, ticket,
        lambda context: key_commands.create(
            context, by, name, key_id=key_id, digest=digest, protocols=protocols_of(protocols), days=days, rate=rate,
            level=level, why=why,
        ),
    )  # fmt: skip


@control_command(variadic="words", signature="<id|name> [reason …]")
def keys_revoke(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """End an API key, or all keys of a name, at once."""
    if not words:
        return _usage("an id or a name is missing", "keys_revoke <id|name> [reason …]")
    name, why = str(words[0]), _why(words[1:])
    return _done(state, ticket, lambda context: key_commands.revoke(context, by, name, why))


@control_command(name="replay_dead_letters", variadic="words", signature="[--dry-run] [limit]")
def replay_dead_letters(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Try to store dead letters again."""
    flags = {word.lstrip("-").replace("-", "_") for word in words if not word.isdigit()}
    numbers = [int(word) for word in words if word.isdigit()]
    if flags - {"dry_run"} or len(numbers) > 1:
        return _usage("it takes --dry-run and one number", "replay_dead_letters [--dry-run] [limit]")
    limit = numbers[0] if numbers else _REPLAY_LIMIT
    return _done(state, ticket, lambda context: commands.replay(context, by, limit, dry_run="dry_run" in flags))


@control_command(name="skip_gap", variadic="words", signature="[--dry-run] <partition> <from> <to> [reason …]")
def skip_gap(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Continue after a hole in the event log, and give up its offsets: exactly those that `inspect gap` shows."""
    numbers, why, dry_run = _decision(words, 3)
    if numbers is None:
        return _usage(
            "a partition and two offsets are needed", "skip_gap [--dry-run] <partition> <from> <to> [reason …]"
        )
    partition, first, end = numbers
    return _done(
        state, ticket, lambda context: stopped.skip(context, by, partition, Hole(first, end), why, dry_run=dry_run)
    )


@control_command(name="accept_poison", variadic="words", signature="[--dry-run] <partition> [reason …]")
def accept_poison(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """Store the batch for which a partition was paused; records that the sink refuses become dead letters."""
    numbers, why, dry_run = _decision(words, 1)
    if numbers is None:
        return _usage("a partition is missing", "accept_poison [--dry-run] <partition> [reason …]")
    return _done(state, ticket, lambda context: stopped.accept(context, by, numbers[0], why, dry_run=dry_run))


@control_command(name="accept_late_begin", variadic="words", signature="[reason …]")
def accept_late_begin(state: Any, words: Any = (), by: str = "", ticket: str = "", **_: Any) -> Reply:
    """End the reason `began_late` after an intended change of the database; a later, other late begin is one again."""
    return _done(state, ticket, lambda context: late_begins.accept(context, by, _why(words)))


# --- Inside ---------------------------------------------------------------------------------------------------------


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="remote-command")


class Patience:
    """How long the event loop waits for a command: for several at once no longer than for one.

    Celery runs all commands that have arrived before the loop starts a task, and the queue watch
    (`tasks/queue_watch.py`) ends a worker if its loop hangs.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waited = 0.0  # seconds that no other work has compensated
        self._waited_at = 0.0  # monotonic: the end of the latest wait

    @contextlib.contextmanager
    def wait(self) -> Iterator[float]:
        """Yields the seconds for which the body may wait."""
        began = self._clock.monotonic()
        self._waited = max(0.0, self._waited - _MADE_UP_FACTOR * (began - self._waited_at))
        try:
            yield max(0.0, _WAIT_SECONDS_MAX - self._waited)
        finally:
            self._waited_at = self._clock.monotonic()
            self._waited += self._waited_at - began


@cache
def _patience() -> Patience:
    return Patience(SystemClock())


@cache
def _context(app: Any) -> WorkerContext:
    """Adapters of the main process, for that thread only."""
    return WorkerContext(app.sluice_settings)


def _why(words: Any, *given: float | None) -> str:
    """The words as a reason. If no word follows the last argument, Celery passes that argument as a word too."""
    last = next((value for value in reversed(given) if value is not None), None)
    if last is not None and len(words) == 1 and _is_number(words[0]) and float(words[0]) == last:
        words = ()
    return " ".join(str(word) for word in words) or "no reason given"


def _decision(words: Any, count: int) -> tuple[list[int] | None, str, bool]:
    """The first `count` words as numbers (None if they are none), the reason after them, and the dry-run flag."""
    dry = [word for word in words if is_dry_run(word)]
    left = [str(word) for word in words if word not in dry]
    numbers = left[:count]
    if len(numbers) < count or not all(word.isascii() and word.isdigit() for word in numbers):
        return None, "", False
    return [int(word) for word in numbers], " ".join(left[count:]) or "no reason given", bool(dry)


def _number_among(words: list[str], option: str) -> float | None:
    """Take an option with a number out of the words. Raises IndexError, ValueError."""
    value = _option_among(words, option)
    return None if value is None else float(value)


def _option_among(words: list[str], option: str) -> str | None:
    """Take `--option value` or `--option=value` out of the words. Raises IndexError if the value is missing."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            found = value if equals else words[index + 1]
            del words[index : index + (1 if equals else 2)]
            return found
    return None


def is_dry_run(word: object) -> bool:
    """Whether a word is the option for a dry run."""
    return str(word).lstrip("-").replace("-", "_") == _DRY_RUN


def _without_dry_run(words: Any, *given: float | str | None) -> tuple[list[float | None], tuple[Any, ...], bool]:
    """The given numbers, the words, and whether the flag was among either."""
    numbers = [None if value is None or isinstance(value, str) else value for value in given]
    left = tuple(word for word in words if not is_dry_run(word))
    return numbers, left, len(left) < len(words) or any(isinstance(value, str) for value in given)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _usage(wrong: str, form: str) -> Reply:
    return {"error": f"{wrong}: celery -A tasks.app control {form}"}


def _done(state: Any, ticket: str, work: Callable[[WorkerContext], str]) -> Reply:
    return _answered(state, ticket, lambda context: {"ok": work(context)})


def _answered(state: Any, ticket: str, work: Callable[[WorkerContext], Reply]) -> Reply:
    """Run the command, if this worker is the one for it: it has the queue `control`, and got the ticket."""
    if Queue.CONTROL.value not in state.app.amqp.queues.consume_from:
        return {NOT_MINE: True}
    if not ticket:  # another application's broadcast: every control worker would run it
        return {"error": "this command needs a ticket: send it with `celery -A tasks.app`"}
    context = _context(state.app)
    try:
        if context.leases.take(f"command:{ticket}", seconds=_TICKET_SECONDS) is None:
            return {NOT_MINE: True}
    except SluiceError as error:
        return {"error": f"nothing was changed: {error}"}

    def run() -> Reply:
        try:
            return work(context)
        except commands.CommandError as error:
            return {"error": str(error)}
        except RecoverableError as error:
            return {"error": f"not done: {in_brief(error)}"}
        except SluiceError as error:
            return {"error": str(error)}
        except Exception as error:
            _logger.exception("a remote command failed because of a defect", extra={"action": "command_failed"})
            return {"error": f"a defect of the worker, see its log: {type(error).__name__}"}
        finally:
            context.storage.close()  # otherwise the connection would stay open until the next command

    under_way = _thread().submit(run)
    try:
        with _patience().wait() as seconds:
            return under_way.result(seconds)
    except TimeoutError:
        under_way.add_done_callback(_log_late)
        return {
            "ok": "Accepted, and still running: `inspect sluice` shows its effect, and this worker's log its result."
        }


def _log_late(done: "Future[Reply]") -> None:
    """Log the result of a command that ended after its answer was sent."""
    reply = done.result()
    _logger.warning("late answer: %s", reply.get("error") or reply["ok"], extra={"action": "command_answered_late"})
