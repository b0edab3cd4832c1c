"""Checks the responses to clients: statuses, counts, Retry-After, and when `indeterminate` was right."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from checks.soak.history import Outcome, Request
from checks.soak.windows import Part, Windows

_STATUSES = frozenset({"202", "429", "503 unavailable", "503 indeterminate"})
_RETRIES = frozenset({"429", "503 unavailable", "503 indeterminate"})
# From the death of a log until a running append has failed.
FAILED_SECONDS = 0.7
# A busy machine may pause for a moment, and all requests of that moment time out, however many there are. So the limit
# is on the time in which requests timed out without a fault, not on their number.
SLOW_SHARE_MAX = 0.01  # of the time of all requests
SLOW_SPELLS_MAX = 8.0  # times the limit of an append: a cold Kafka needs some of them while other servers start
_SLOW = "appends that timed out without a fault of the log"


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """The limits for answers."""

    append_seconds_max: float  # after which ingest does not know the outcome of an append
    retry_seconds_max: int  # the longest Retry-After that a policy of the run gives
    log_after_seconds: float  # for how long after a repair appends may still fail
    dead_log_takes_nothing: bool  # no client library keeps an append for later


def check_answers(requests: Sequence[Request], windows: Windows, rules: AnswerRules) -> dict[str, list[str]]:
    """Requests with wrong answers, by kind of error; every body of the harness is valid."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    slow: list[Request] = []
    for one in requests:
        name = one.request_id or f"sent at {one.sent_at:.3f}"
        if one.status[:1].isdigit() and one.status not in _STATUSES:
            bad["responses with a status other than 202, 429 or 503"].append(f"{name}: {one.status}")
        if one.outcome is Outcome.ACKED and one.told.accepted != one.events:
            bad["responses with a wrong count of accepted events"].append(
                f"{name}: {one.told.accepted} instead of {one.events}"
            )
        if one.outcome is Outcome.ACKED and windows.accepts_nothing(one.sent_at, one.answered_at or one.sent_at):
            bad["events acknowledged while no replica could have them"].append(name)
        if one.given_id is not None and one.status in _STATUSES and one.told.request_id != one.given_id:
            bad["responses with an X-Request-ID that is not the request's"].append(name)
        if one.status in _RETRIES and not _fits(one.told.retry_after, rules.retry_seconds_max):
            bad["refusals without a valid Retry-After"].append(f"{name}: {one.told.retry_after}")
        if one.status == "503 indeterminate":
            words = _wrong_of_indeterminate(one, windows, rules)
            if words is not None:
                bad[words].append(name)
            if words == _SLOW:
                slow.append(one)
    if slow and _seconds_of(slow) <= max(
        SLOW_SPELLS_MAX * rules.append_seconds_max, SLOW_SHARE_MAX * _seconds_of(requests)
    ):
        del bad[_SLOW]
    return bad


def _seconds_of(requests: Sequence[Request]) -> float:
    """The total time in which at least one of these requests was running."""
    seconds, until = 0.0, float("-inf")
    for start, end in sorted((one.sent_at, one.answered_at or one.sent_at) for one in requests):
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return seconds


def _fits(retry_after: str | None, seconds_max: int) -> bool:
    return retry_after is not None and retry_after.isdecimal() and 1 <= int(retry_after) <= seconds_max


def _wrong_of_indeterminate(one: Request, windows: Windows, rules: AnswerRules) -> str | None:
    """`indeterminate` is right if an append was running and a fault or a time-out hid its outcome."""
    answered_at = one.answered_at or one.sent_at
    if rules.dead_log_takes_nothing and windows.was_dead(
        Part.LOG, one.sent_at, answered_at, since_seconds=FAILED_SECONDS
    ):
        return "indeterminate responses while the log was dead"
    parts = (Part.LOG, Part.INGEST)
    if windows.touching(parts, one.sent_at, answered_at, after_seconds=rules.log_after_seconds):
        return None
    if answered_at - one.sent_at < 0.9 * rules.append_seconds_max:
        return "indeterminate responses without a fault of the log"
    return _SLOW
