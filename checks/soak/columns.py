"""Whether the columns that ingest and the drain add are right: request, arrival, partition, log; and dead letters."""

import math
from collections import defaultdict
from collections.abc import Sequence

from checks.soak.found import Found, Stored
from checks.soak.history import History, Request
from checks.soak.windows import ClockSpan, Refusal

ARRIVAL_SECONDS_MAX = 1.0  # before or after the request: both read one clock, but a busy machine adds delays
NOTICE_SECONDS = 1.0  # a trigger works from its commit on; the harness notes the time before and after that
# A refused row belongs to a batch. The transaction of the batch may end this long after the refusal.
BATCH_SECONDS = 15.0


def check_columns(history: History, found: Found, clocks: Sequence[ClockSpan]) -> dict[str, list[str]]:
    """Keys of wrong rows, dead letters and records, by kind of error."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    for one in (*found.rows, *found.letters, *found.log):
        sent = history.events.get(one.key)
        if sent is None:
            continue  # reported elsewhere
        if found.partition_counts and one.hash is not None:
            wanted = {one.hash % count for count in found.partition_counts}
            if one.place.partition not in wanted:
                bad["in another partition than their correlation id belongs to"].append(one.key)
        if one.log_id is not None and one.log_id != found.log_id:
            bad["stored with the id of another log"].append(one.key)
        carriers = [request for request in sent.requests if request.request_id in (None, one.request_id)]
        if not carriers:
            bad["stored under a request that did not bring them"].append(one.key)
        elif not any(_could_arrive(one, request, clocks) for request in carriers):
            bad["stored with a time of arrival at which their request was not under way"].append(one.key)
    return bad


def _could_arrive(one: Stored, request: Request, clocks: Sequence[ClockSpan]) -> bool:
    """Whether ingest could have recorded this time, with the right clock or with one that was shifted then."""
    start = request.sent_at - ARRIVAL_SECONDS_MAX
    if request.answered_at is not None and not request.status.startswith("no answer"):
        end = request.answered_at + ARRIVAL_SECONDS_MAX
    else:
        # Neither the time-out of a client nor its end takes the request back from the socket. Ingest reads it when it
        # gets CPU time, so only what was stored bounds its arrival.
        end = math.inf if one.stored_at is None else one.stored_at + ARRIVAL_SECONDS_MAX
    shifts = [0.0, *(span.shift_seconds for span in clocks if span.start <= end and start <= span.end)]
    return any(start <= one.received_at - shift <= end for shift in shifts)


def check_letters(found: Found, refusals: Sequence[Refusal]) -> dict[str, list[str]]:
    """Dead letters that the schedule does not explain, because PostgreSQL refused no such row then."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    for one in found.letters:
        if not any(_explains(refusal, one) for refusal in refusals):
            why = "undecodable" if one.sqlstate is None else one.sqlstate
            bad["dead letters though PostgreSQL did not refuse them so"].append(f"{one.key} ({why})")
    return bad


def _explains(refusal: Refusal, letter: Stored) -> bool:
    at = letter.stored_at
    return (
        letter.sqlstate == refusal.sqlstate
        and letter.place.offset % refusal.every == refusal.rest
        and at is not None
        and refusal.start - NOTICE_SECONDS <= at <= refusal.end + BATCH_SECONDS
    )
