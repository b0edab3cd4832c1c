"""The only module that judges health: turns a snapshot into a status and a list of problems, in words. Pure.

The health response, the page, the terminal and `inspect sluice` show its verdict and decide nothing themselves.
Times of day are in UTC, as in the log lines.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.errors import in_brief
from pipeline.event_text import clock_time, pause_advice, pause_text, rate_text, sentence
from pipeline.health.responses import (
    CLEAR_RATE,
    DOCTOR,
    by_itself_of_pause,
    command_of_alarm,
    command_of_pause,
    response_to,
    response_where_named,
)
from pipeline.health.snapshot import PACE_SECONDS, HealthInputs, Traffic
from pipeline.names import (
    REFUSALS,
    AlarmCode,
    BreakerState,
    Health,
    LimitedBy,
    Mode,
    PauseReason,
    ProblemCode,
    Severity,
    SinkName,
)
from pipeline.ports.control import Alarm, Pause
from pipeline.ports.rate import Explanation
from pipeline.refusals_text import heaviest_share, most_refused, reason_share
from pipeline.text import counted

# The start of an adapter's error text, before the reason; the problem's text already contains it.
_SAYS_WHO: Final = re.compile(
    r"^the (?:control store|event log) \(\w+\) (?:(?:does not answer|can't be reached)(?: at \w+)?|refuses)[:.] *", re.I
)
# The same of an error that says which setting to change.
_CANT_BE_USED: Final = re.compile(r"^the (?:control store|event log) \(\w+\) can't be used: *", re.I)
# The same of an event log that answers, and takes no appends.
_ACCEPTS_NONE: Final = re.compile(r"^the event log(?: \(\w+\))? accepts no events: *", re.I)
# The start of the text of a server that answers, and refuses what it is asked for.
_REFUSES: Final = re.compile(r"^the (?:control store|event log) \(\w+\) refuses: ", re.I)

_MOST: Final = 0.5  # more than this share is most of it
_FULL: Final = 0.9  # of the rate: a bucket of whole events and the history's seconds make the rest
_SHOWN_SHARE_MIN: Final = 0.01  # a level or a protocol that is refused less is not named
_WORST_SHOWN: Final = 3  # levels or protocols

_LOWERS_THE_RATE: Final = frozenset(
    {
        ProblemCode.BREAKER_OPEN,
        ProblemCode.BEHIND,
        ProblemCode.STORE_DOWN,
        ProblemCode.BUCKET_UNAVAILABLE,
        ProblemCode.CONTROLLER_SILENT,
        AlarmCode.LAG_UNKNOWN,
    }
)

# Problems with a server that ingest processes report: what follows for the named processes, and where to look.
_ELSEWHERE: Final[Mapping[str, tuple[str, str]]] = {
    ProblemCode.LOG_DOWN: ("", "the log's server, and the network to it from the hosts that are named"),
    ProblemCode.LOG_FULL: (": clients get 503 there", "the memory of the log's server, and why consumers are behind"),
    ProblemCode.BUCKET_UNAVAILABLE: (
        ": the share of the last known rate holds there",
        "the server of REDIS_URL, its memory limit, and the network to it from the hosts that are named",
    ),
}

# Where to look if the sink fails.
_SINK_PARTS: Final = {
    SinkName.POSTGRESQL: "PostgreSQL and the network to it",
    SinkName.ARCHIVE: "the archive: its disk, its folder and who may write there",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `look_at`: where to start the investigation."""

    code: str  # a ProblemCode, or the code of an alarm
    severity: Severity
    what: str
    look_at: str
    own_command: str = ""  # if another one than that of its code is the first
    own_by_itself: str = ""  # if another text than that of its code is right

    @property
    def by_itself(self) -> str:
        """What the system does about it without an operator; empty for a code of a newer version."""
        return self.own_by_itself or response_to(self.code).by_itself

    @property
    def command(self) -> str:
        """The command to begin with; empty if there is no single one."""
        return self.own_command or response_to(self.code).command


@dataclass(frozen=True, slots=True)
class Verdict:
    """The status of the system and its problems: worst first, causes before their effects."""

    status: Health
    problems: tuple[Problem, ...]

    @property
    def rate_level(self) -> Severity | None:
        """The severity of the worst problem that lowers the rate; None: an operator or the policy chose the rate."""
        return next((problem.severity for problem in self.problems if problem.code in _LOWERS_THE_RATE), None)


def judge(inputs: HealthInputs) -> Verdict:
    """The verdict on a snapshot."""
    found = [*_unreachable(inputs)]
    if inputs.store_problem is None:
        found += [*_refusals(inputs), *_breaker(inputs), *_pauses(inputs), *_controller(inputs)]
    found += [*_no_progress(inputs), *_lag(inputs), *_alarms(inputs), *_loops(inputs), *_refusing(inputs)]
    problems = tuple(sorted(found, key=lambda problem: problem.severity is not Severity.CRITICAL))
    return Verdict(_status(inputs, problems), problems)


def duration(seconds: float) -> str:
    """An approximate duration, for people."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _status(inputs: HealthInputs, problems: tuple[Problem, ...]) -> Health:
    if inputs.store_problem is not None and inputs.log_problem is not None and not inputs.serves_clients:
        return Health.UNKNOWN  # the reader itself may be cut off, or have the wrong addresses
    severities = {problem.severity for problem in problems}
    if Severity.CRITICAL in severities:
        return Health.CRITICAL
    return Health.DEGRADED if severities else Health.HEALTHY


# --- Servers ------------------------------------------------------------------------------------------------------


def _unreachable(inputs: HealthInputs) -> Iterator[Problem]:
    if inputs.log_problem is not None:
        cause, is_refused = _CANT_BE_USED.subn("", " ".join(inputs.log_problem.split()))
        cause, accepts_none = _ACCEPTS_NONE.subn("", cause)
        what = f"can't be used ({cause})" if is_refused else what_it_does(inputs.log_problem)
        page = "docs/replication.md" if "replica" in cause else "docs/links.md"
        where = page if is_refused else f"the log's server and the network to it{_it_says(cause)}"
        if accepts_none:
            what, where = f"accepts no events ({cause})", "docs/runbooks/log-down.md"
        yield Problem(
            ProblemCode.LOG_DOWN,
            Severity.CRITICAL,
            f"The event log ({inputs.event_log}) {what}: clients get 503, nothing is taken",
            where,
        )
    elif inputs.is_log_full:
        yield Problem(
            ProblemCode.LOG_FULL,
            Severity.CRITICAL,
            "The event log is full: clients get 503, nothing is taken",
            f"the memory of the log's server, and why consumers are behind{_reported(inputs, ProblemCode.LOG_FULL)}",
        )
    if inputs.store_problem is not None:
        does = what_it_does(inputs.store_problem)
        yield Problem(
            ProblemCode.STORE_DOWN,
            Severity.DEGRADED,
            f"The control store (Redis) {does}: rate, breaker and pauses are unknown; ingest uses the last "
            "rate that it knew, which falls to the lowest rate",
            f"the server of REDIS_URL{_it_says(inputs.store_problem)}",
        )
    elif inputs.is_bucket_unavailable:
        yield Problem(
            ProblemCode.BUCKET_UNAVAILABLE,
            Severity.DEGRADED,
            f"The token bucket (Redis) {what_it_does(inputs.bucket_problem)}: each ingest process admits its share of "
            "the last known rate",
            f"the server of REDIS_URL, and its memory limit{_reported(inputs, ProblemCode.BUCKET_UNAVAILABLE)}"
            f"{_it_says(inputs.bucket_problem)}",
        )
    for alarm in _of_other_processes(inputs):
        then, look_at = _ELSEWHERE[alarm.code]
        yield Problem(
            alarm.code,
            alarm.severity,
            f"{alarm.what}{then}",
            f"{look_at}; {alarm.look_at}",
            own_by_itself=response_where_named(alarm.code).by_itself,
        )
    if inputs.database_problem is not None:
        yield Problem(
            ProblemCode.DATABASE_SILENT,
            Severity.DEGRADED,
            sentence(f"{inputs.sink} could not be read: dead letters are not counted"),
            f"{inputs.sink}; the breaker opens by itself if drains fail too{_it_says(inputs.database_problem)}",
        )


def what_it_does(problem: str) -> str:
    """What a server does, by the error that an adapter raised."""
    return "refuses requests" if _REFUSES.match(problem) else "does not answer"


def _what_the_log_does(problem: str) -> str:
    """The same of the event log, which may answer and yet be of no use."""
    problem = " ".join(problem.split())
    if _CANT_BE_USED.match(problem):
        return "can't be used"
    return "accepts no events" if _ACCEPTS_NONE.match(problem) else what_it_does(problem)


def _is_readable(problem: str) -> bool:
    """Whether only appends fail, by the error of one: then drains go on."""
    problem = " ".join(problem.split())
    return bool(_ACCEPTS_NONE.match(problem) or (_CANT_BE_USED.match(problem) and "replica" in problem))


def _of_other_processes(inputs: HealthInputs) -> Iterator[Alarm]:
    """What ingest processes report, and the process of this snapshot has not found itself: the others may be well."""
    found_here = {
        ProblemCode.LOG_DOWN: inputs.log_problem is not None,
        ProblemCode.LOG_FULL: inputs.is_log_full,
        ProblemCode.BUCKET_UNAVAILABLE: inputs.is_bucket_unavailable,
    }
    return (alarm for alarm in inputs.alarms if alarm.code in _ELSEWHERE and not found_here[ProblemCode(alarm.code)])


def _reporters(inputs: HealthInputs, code: ProblemCode) -> str:
    """Which ingest processes reported it, as the controller published it; empty: none did."""
    return next((alarm.look_at for alarm in inputs.alarms if alarm.code == code), "")


def _reported(inputs: HealthInputs, code: ProblemCode) -> str:
    reporters = _reporters(inputs, code)
    return f"; {reporters}" if reporters else ""


def _it_says(problem: str) -> str:
    said = _SAYS_WHO.sub("", in_brief(problem))
    return f"; it says: {said}" if said else ""


# --- The control loop ---------------------------------------------------------------------------------------------


def _refusals(inputs: HealthInputs) -> Iterator[Problem]:
    """Why the sink stores nothing, as the controller published it: before the open breaker, its effect."""
    return (_of_alarm(alarm) for alarm in inputs.alarms if alarm.code in REFUSALS)


def _of_alarm(alarm: Alarm) -> Problem:
    return Problem(alarm.code, alarm.severity, alarm.what, alarm.look_at, command_of_alarm(alarm.code, alarm.partition))


def _breaker(inputs: HealthInputs) -> Iterator[Problem]:
    if inputs.breaker not in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        return
    held = next((pause for pause in inputs.pauses or () if pause.reason is PauseReason.BREAKER), None)
    since = f" since {clock_time(held.since)}" if held is not None else ""
    at_floor = "" if inputs.rate is None else f" ({rate_text(inputs.rate)})"
    rate = f"at its lowest{at_floor}"
    if inputs.rate is not None and inputs.rate < inputs.floor_rate and inputs.override is not None:
        rate = f"{rate_text(inputs.rate)}, set by an operator"
    look_at = f"{_SINK_PARTS[inputs.sink]}: {held.why}" if held is not None else _SINK_PARTS[inputs.sink]
    if any(alarm.code == AlarmCode.DATABASE_REFUSED for alarm in inputs.alarms):
        # The breaker may have opened for another reason.
        look_at = f"why {inputs.sink} is refused: the breaker only follows from that"
    left = [pause for pause in inputs.pauses or () if pause.reason is not PauseReason.BREAKER]
    others = [pause_text(pause.name, pause.partition) for pause in left]
    then = "all resumes by itself"
    if any(pause.partition is None for pause in left):
        then = f"the breaker closes by itself, but consumption stays paused ({', '.join(others)})"
    elif left:
        then += f", except what else is paused ({', '.join(others)})"
    yield Problem(
        ProblemCode.BREAKER_OPEN,
        Severity.CRITICAL,
        sentence(
            f"{inputs.sink} fails{since}: the breaker is {inputs.breaker.value}, consumption is paused, "
            f"the rate is {rate}"
        ),
        f"{look_at}. Once a write succeeds, {then}",
        "" if inputs.sink is SinkName.POSTGRESQL else DOCTOR,
    )


def _pauses(inputs: HealthInputs) -> Iterator[Problem]:
    if inputs.pauses is None:
        yield Problem(
            ProblemCode.PAUSES_UNKNOWN,
            Severity.DEGRADED,
            "Breaker and pauses are unknown: the control store was emptied, and they are not restored yet",
            "the control worker and PostgreSQL: it restores them from there within a period",
        )
    for pause in inputs.pauses or ():
        if pause.reason is not PauseReason.BREAKER:
            # The cause is listed before the lag that it produces, so it has the same severity.
            yield Problem(
                ProblemCode.PAUSED,
                Severity.CRITICAL if inputs.mode is Mode.CRITICAL else Severity.DEGRADED,
                f"{_paused_what(pause)} is paused ({pause_text(pause.name, None)}) since "
                f"{clock_time(pause.since)} by {pause.actor}: {pause.why}; {_its(pause)}events are accepted, "
                "but not stored",
                pause_advice(pause.reason, pause.partition),
                command_of_pause(pause.reason, pause.partition),
                own_by_itself=by_itself_of_pause(pause.reason),
            )


def _paused_what(pause: Pause) -> str:
    return "Consumption" if pause.partition is None else f"Consumption of partition {pause.partition}"


def _its(pause: Pause) -> str:
    return "" if pause.partition is None else "its "


def _controller(inputs: HealthInputs) -> Iterator[Problem]:
    if inputs.is_controller_silent:
        age = inputs.controller_age
        spoke = "has published no rate yet" if age is None else f"is silent since {clock_time(inputs.at - age)}"
        waiting, look_at = _silent_process(inputs.ticks_waiting)
        full = _full_store(inputs)
        if full is not None:
            waiting, look_at = f"; {full[0]}", full[1]
        yield Problem(
            ProblemCode.CONTROLLER_SILENT,
            Severity.DEGRADED,
            f"The controller {spoke}{waiting}: the last rate holds for a while, then falls to the lowest rate",
            look_at,
        )


def _full_store(inputs: HealthInputs) -> tuple[str, str] | None:
    """That no task can be sent because the control store has no memory left, and where to look; None: it has."""
    used, limit = inputs.store_memory or (0, 0)
    if not limit or used < limit:
        return None
    figures = f"{used >> 20:,} of {limit >> 20:,} MB"
    return (
        f"the control store (Redis) is at its memory limit ({figures}), and takes no tasks",
        "the memory of the server of REDIS_URL: `redis-cli --bigkeys` shows what takes it; raise its maxmemory",
    )


def _silent_process(ticks_waiting: int | None) -> tuple[str, str]:
    """Which of Beat and the control worker is silent, by the ticks that wait between them, and what to do."""
    if ticks_waiting is None:
        return "", "Beat and the control worker: do both run, and do they reach Redis?"
    if ticks_waiting:
        return (
            f"; {counted(ticks_waiting, 'task')} wait{'s' if ticks_waiting == 1 else ''} in its queue",
            "the control worker: it takes no tasks, so it does not run, is frozen or can't reach Redis. Start it again",
        )
    return (
        "; no task waits in its queue",
        "Beat, which sends no ticks; if it does, the log of the control worker, which then fails at each tick",
    )


# --- Lag and progress ---------------------------------------------------------------------------------------------


def _no_progress(inputs: HealthInputs) -> Iterator[Problem]:
    stuck = inputs.stuck
    if not stuck:
        return
    lags = inputs.lag_by_partition or {}
    waiting = sum(lags.get(partition, 0) for partition in stuck)
    named = ", ".join(str(partition) for partition in stuck)
    of = "" if len(stuck) == len(lags) else f" of partition{'s' if len(stuck) > 1 else ''} {named}"
    likely, look_at = _likely_cause(inputs)
    yield Problem(
        ProblemCode.NO_PROGRESS,
        Severity.CRITICAL,
        f"No event{of} was stored for {min(stuck.values()):,.0f} s, although {waiting:,} wait: {likely}",
        look_at,
    )


def _likely_cause(inputs: HealthInputs) -> tuple[str, str]:
    """The reason why nothing is stored, as far as known, and where to look."""
    alarm = _cause_alarm(inputs)
    if alarm is not None:
        return alarm.what, alarm.look_at
    if inputs.store_problem is not None:
        return f"drains need the control store, which {what_it_does(inputs.store_problem)}", "the server of REDIS_URL"
    if inputs.log_problem is not None and not _is_readable(inputs.log_problem):
        return f"drains need the event log, which {_what_the_log_does(inputs.log_problem)}", "the log's server"
    full = _full_store(inputs)
    if full is not None:
        return full
    if inputs.is_controller_silent:
        return (
            "the controller is silent too, so that no worker may run",
            "the workers, Beat and Redis: do they run, and are they frozen?",
        )
    return (
        "no drain runs, or it is held up",
        "the workers for `batches`: do they run, are they frozen? "
        "`celery -A tasks.app inspect active` shows their tasks",
    )


def _cause_alarm(inputs: HealthInputs) -> Alarm | None:
    """The controller's own alarm about a partition that stores nothing."""
    return next((alarm for alarm in inputs.alarms if alarm.partition in inputs.stuck), None)


def _lag(inputs: HealthInputs) -> Iterator[Problem]:
    lag, rate = inputs.lag, inputs.rate
    if inputs.mode is Mode.UNKNOWN:
        explained = inputs.is_controller_silent or any(alarm.code == AlarmCode.LAG_UNKNOWN for alarm in inputs.alarms)
        if not explained and inputs.store_problem is None:
            yield Problem(
                AlarmCode.LAG_UNKNOWN,
                Severity.DEGRADED,
                "The controller does not know the lag: the last rate holds for a while, then falls to the lowest rate",
                "whether the event log answers the control worker",
            )
    elif inputs.mode in (Mode.DEGRADED, Mode.CRITICAL):
        is_critical = inputs.mode is Mode.CRITICAL
        waits = "an unknown number of events waits" if lag is None else f"{lag:,} events wait"
        ends = (
            "" if inputs.seconds_to_empty is None else f"; at this pace stored in {duration(inputs.seconds_to_empty)}"
        )
        pace = "" if inputs.drain_rate is None else f" (now {rate_text(inputs.drain_rate)})"
        look_at = f"the drain rate{pace}: at 0, the workers; otherwise {inputs.sink} stores fewer events than arrive"
        yield Problem(
            ProblemCode.BEHIND,
            Severity.CRITICAL if is_critical else Severity.DEGRADED,
            f"Consumers are {'far behind' if is_critical else 'behind'}: {waits}{_rate_now(inputs, rate)}{ends}",
            "why consumption is paused: the lag only follows from that" if inputs.pauses else look_at,
        )


def _rate_now(inputs: HealthInputs, rate: float | None) -> str:
    if rate is None:
        return ""
    return f"; the rate is {rate_text(rate)}" + ("" if inputs.override is None else f", {inputs.rate_decided_by}")


def _alarms(inputs: HealthInputs) -> Iterator[Problem]:
    """The controller's alarms, except those that are a problem already."""
    cause = _cause_alarm(inputs)
    for alarm in inputs.alarms:
        if alarm is not cause and not _is_told(inputs, alarm):
            yield _of_alarm(alarm)


def _is_told(inputs: HealthInputs, alarm: Alarm) -> bool:
    """Whether an alarm is among the other problems of this snapshot."""
    is_own = bool(inputs.process) and alarm.what.startswith(f"{inputs.process}: ")
    is_cause = inputs.store_problem is None and alarm.code in REFUSALS
    return is_cause or alarm.code in _ELSEWHERE or (is_own and alarm.code == AlarmCode.LOOP_FAILS)


def _loops(inputs: HealthInputs) -> Iterator[Problem]:
    for problem in inputs.loop_problems:
        yield Problem(
            ProblemCode.LOOP, Severity.DEGRADED, sentence(problem), "the log of this ingest process; a restart may help"
        )


# --- Clients ------------------------------------------------------------------------------------------------------


def _refusing(inputs: HealthInputs) -> Iterator[Problem]:
    traffic = inputs.traffic
    if traffic is None or traffic.refused_share <= inputs.refused_ratio_max:
        return
    why, look_at = _why_refused(inputs, traffic)
    share, when = f"{100 * traffic.refused_share:.0f} %", f"in the {traffic.share_time}"
    what = f"{share} of the offered events were refused {when}"
    if _is_at_its_limit(inputs, traffic):
        what = f"At its limit: {share} refused {when}"
    what = f"{what}: {why}{_who_is_refused(inputs, traffic)}"
    is_by_operator = inputs.override is not None and "clear_rate_limit" in look_at
    yield Problem(ProblemCode.REFUSING, Severity.DEGRADED, what, look_at, CLEAR_RATE if is_by_operator else "")


def _is_at_its_limit(inputs: HealthInputs, traffic: Traffic) -> bool:
    """Whether nothing is wrong with the system itself: clients offer more than its full rate."""
    is_whole = inputs.breaker is BreakerState.CLOSED and inputs.store_problem is None
    has_bucket = not inputs.is_bucket_unavailable and not _reporters(inputs, ProblemCode.BUCKET_UNAVAILABLE)
    is_by_policy = inputs.override is None and inputs.mode is Mode.NORMAL and has_bucket
    is_of_now = traffic.unavailable_share <= _MOST and _lower_rate(inputs, traffic) is None
    return is_whole and is_by_policy and is_of_now and not _limits_of_accounts(inputs, traffic)


def _lower_rate(inputs: HealthInputs, traffic: Traffic) -> float | None:
    """The lowest rate at which events were refused, if most were refused at rates that were lower than now."""
    lower = {rate: events for rate, events in traffic.refused_at.items() if rate < _FULL * (inputs.rate or 0.0)}
    return min(lower) if sum(lower.values()) > _MOST * sum(traffic.refused_at.values()) else None


def _limits_of_accounts(inputs: HealthInputs, traffic: Traffic) -> bool:
    """Whether accounts are refused for limits of their own: most of it is, and the rate has room."""
    if inputs.refusals is None or inputs.rate is None or traffic.admitted > _FULL * inputs.rate:
        return False
    return reason_share(inputs.refusals, LimitedBy.SHARE) > _MOST


def _who_is_refused(inputs: HealthInputs, traffic: Traffic) -> str:
    """The accounts, levels and protocols that are refused most, as far as they are known."""
    if traffic.unavailable_share > _MOST:
        return ""
    accounts = "" if inputs.refusals is None else most_refused(inputs.refusals)
    levels = {level.label: one.refused_share for level, one in traffic.levels.items()}
    protocols = {name.value: one.refused_share for name, one in traffic.protocols.items()}
    said = [accounts] if accounts else []
    for head, shares in (("level", levels), ("protocol", protocols)):
        worst = sorted(((share, name) for name, share in shares.items() if share >= _SHOWN_SHARE_MIN), reverse=True)
        if worst:
            # Each part names its window: the headline's is another one.
            when = f"by {head} in the last {PACE_SECONDS:g} s:"
            said.append(f"{when} {', '.join(f'{name} {100 * share:.0f} %' for share, name in worst[:_WORST_SHOWN])}")
    return "".join(f"; {one}" for one in said)


def _why_refused(inputs: HealthInputs, traffic: Traffic) -> tuple[str, str]:
    """The reason for most of the refusals, and where to look."""
    if traffic.unavailable_share > _MOST:
        return _why_unavailable(inputs)
    if inputs.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        return "the open breaker allows only the lowest rate", f"{inputs.sink}: it fails"
    if inputs.store_problem is not None or inputs.is_bucket_unavailable:
        does = what_it_does(inputs.store_problem or inputs.bucket_problem)
        return f"the token bucket {does}, and ingest uses the last known rate, which falls", "the server of REDIS_URL"
    reporters = _reporters(inputs, ProblemCode.BUCKET_UNAVAILABLE)
    if reporters:
        return (
            "some ingest processes can't use the token bucket, and admit their share of the last known rate",
            f"the server of REDIS_URL, and the network to it; {reporters}",
        )
    if inputs.override is None and _limits_of_accounts(inputs, traffic):
        return (
            "accounts offer more than their own limits or fair shares, and the rate has room",
            "whether the limits are meant: `celery -A tasks.app inspect account_limits` shows them, ACCOUNT_LIMITS and "
            "`celery -A tasks.app control set_account_limit` change them",
        )
    return _why_limited(inputs, traffic)


def _why_unavailable(inputs: HealthInputs) -> tuple[str, str]:
    if inputs.log_problem is not None:
        return f"the event log {_what_the_log_does(inputs.log_problem)}", "the event log's server"
    if inputs.is_log_full:
        return "the event log is full", "the memory of the log's server"
    for code, why in (
        (ProblemCode.LOG_DOWN, "some ingest processes can't use the event log"),
        (ProblemCode.LOG_FULL, "the event log is full, as some ingest processes report"),
    ):
        reporters = _reporters(inputs, code)
        if reporters:
            return why, f"the event log's server; {reporters}"
    return "ingest was unavailable (503)", "the event log, and the limits of ingest: the code of each 503 says which"


def _why_limited(inputs: HealthInputs, traffic: Traffic) -> tuple[str, str]:
    rate = "" if inputs.rate is None else f" at {rate_text(inputs.rate)}"
    if inputs.override is not None:
        held = inputs.override
        return (
            f"a rate set by an operator holds{rate}, by {held.actor}: {held.why}",
            "whether it is still wanted: `celery -A tasks.app control clear_rate_limit` ends it",
        )
    if inputs.mode in (Mode.DEGRADED, Mode.CRITICAL):
        return f"{_why_behind(inputs.explanation)} the rate{rate}", "why consumers are behind"
    if inputs.mode is Mode.UNKNOWN:
        if inputs.is_controller_silent:
            return f"the controller is silent, and the rate falls{rate}", "why the controller is silent"
        return f"the lag is unknown, and the rate falls{rate}", "why the lag is unknown"
    lower = _lower_rate(inputs, traffic)
    if lower is not None and inputs.rate is not None:
        return (
            f"most of it while the rate was lower, down to {rate_text(lower)}; it is {rate_text(inputs.rate)} now",
            "nothing, if the share falls; what lowered the rate: `celery -A tasks.app inspect sluice` lists the last "
            "changes",
        )
    limit = "" if inputs.rate is None else f" of {rate_text(inputs.rate)}"
    return f"clients offer more than the rate{limit}", f"{inputs.explanation.look_at}{_hold_back(inputs)}"


def _hold_back(inputs: HealthInputs) -> str:
    """The command that limits one account, if most of the refusals are its own."""
    heaviest = None if inputs.refusals is None else heaviest_share(inputs.refusals)
    if heaviest is None or heaviest[1] <= _MOST:
        return ""
    return f". To limit {heaviest[0]} alone: `celery -A tasks.app control set_account_limit {heaviest[0]} RATE`"


def _why_behind(explanation: Explanation) -> str:
    """What holds the rate, in a mode that is not normal. A silent controller's reason is unknown."""
    if explanation.is_about_lag:
        return "the lag is high and holds"
    return f"{explanation.reason} and holds" if explanation.reason else "the backlog holds"
