"""Whether the events of each partition are in the order of their acknowledgements."""

from collections import defaultdict
from collections.abc import Sequence

from checks.soak.found import Found, Stored
from checks.soak.history import History, Outcome, Request


def check_order(history: History, found: Found) -> dict[str, list[str]]:
    """Wrong offsets by kind of error; rows and dead letters count together, as they came from the log.

    Within a request, events of one partition have the order of the body (a client's keys grow within a body). If a
    request was sent after the acknowledgement of another, its events come later. Requests that overlapped in time have
    no order.
    """
    by_name = {one.request_id: one for one in history.requests if one.outcome is not Outcome.REFUSED}
    partitions: defaultdict[int, list[Stored]] = defaultdict(list)
    for one in (*found.rows, *found.letters):
        partitions[one.place.partition].append(one)
    bad: defaultdict[str, list[str]] = defaultdict(list)
    for stored in partitions.values():
        stored.sort(key=lambda one: one.place)
        _check_partition(stored, by_name, bad)
    return bad


def _check_partition(
    stored: Sequence[Stored], by_name: dict[str | None, Request], bad: defaultdict[str, list[str]]
) -> None:
    last_key: dict[str, str] = {}  # of each request
    newest_sent_at = 0.0  # of the requests whose events came so far
    for one in stored:
        name = f"{one.place.partition}:{one.place.offset}"
        if one.key < last_key.get(one.request_id, ""):
            bad["in another order than in their body"].append(name)
        last_key[one.request_id] = one.key
        request = by_name.get(one.request_id)
        if request is None:
            continue  # reported elsewhere
        if request.outcome is Outcome.ACKED and (request.answered_at or 0.0) < newest_sent_at:
            bad["behind events of a request that was sent after theirs was acknowledged"].append(name)
        newest_sent_at = max(newest_sent_at, request.sent_at)
