"""Decides from the recorded history and the events found at the end whether the promises were kept.

It is pure and queries no server, so tests can use made-up histories (test_checker.py).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from checks.soak.admissions import Outage, over_admission
from checks.soak.answers import AnswerRules, check_answers
from checks.soak.columns import check_columns, check_letters
from checks.soak.control import PolicyRules, check_control
from checks.soak.found import AdmissionRules, Found, OffsetSample, Place, RateSample, Recovery, Stored
from checks.soak.history import History, Outcome, given_id
from checks.soak.order import check_order
from checks.soak.seen import Seen
from checks.soak.windows import ClockSpan, Refusal, Windows

SHOWN_MAX = 5  # examples in one violation


@dataclass(slots=True)
class Disturbed:
    """What the harness did to the system, and when."""

    windows: Windows = field(default_factory=Windows)
    clocks: Sequence[ClockSpan] = ()
    refusals: Sequence[Refusal] = ()
    outages: Sequence[Outage] = ()  # of the control server


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of a run, from its settings."""

    admission: AdmissionRules
    answers: AnswerRules
    policy: PolicyRules


def check(
    history: History,
    found: Found,
    *,
    recovery: Recovery,
    rates: Sequence[RateSample],
    rules: Rules,
    seen: Seen,
    disturbed: Disturbed,
) -> list[str]:
    """The violations as text; empty if every promise was kept."""
    windows = disturbed.windows
    violations = [
        *_check_events(history, found),
        *_check_strangers(history, found),
        *_check_log(history, found),
        *_check_offsets(history, found),
        *_check_samples(found.offset_samples),
        *_worded("events", check_columns(history, found, disturbed.clocks)),
        *_worded("events", check_letters(found, disturbed.refusals)),
        *_worded("events", check_order(history, found)),
        *_worded("requests", check_answers(history.requests, windows, rules.answers)),
        *_worded("moments", check_control(seen, found.rows, windows, rules.policy)),
    ]
    if not found.offset_samples:
        violations.append("no stored offset was sampled, so a decrease would go unseen")
    if all(sample.rate is None for sample in rates):
        violations.append("no published rate was sampled, so an excess of admitted events would go unseen")
    excess = over_admission(history.requests, rates, disturbed.outages, rules.admission)
    if excess is not None:
        violations.append(excess)
    if recovery.seconds is None or recovery.seconds > recovery.seconds_max:
        violations.append(
            f"not drained with its breaker closed within {recovery.seconds_max:.0f} s of the last event: "
            f"{recovery.why_not or f'it took {recovery.seconds:.1f} s'}"
        )
    return violations


def lost_by_the_machine(history: History, found: Found) -> int:
    """How many acknowledged events are missing because the machine lost the tail of the log that held them."""
    kept = {one.key for one in (*found.rows, *found.letters, *found.log)}
    return sum(
        sent.outcome is Outcome.ACKED and key not in kept
        for key in {one.key for one in found.lost}
        if (sent := history.events.get(key)) is not None
    )


def _check_events(history: History, found: Found) -> list[str]:
    """Compare each event with its stored copies."""
    rows = Counter(row.key for row in found.rows)
    letters = Counter(letter.key for letter in found.letters)
    in_log = Counter(record.key for record in found.log)
    lost = {record.key for record in found.lost}
    lost_unread = lost if found.lost_unread is None else found.lost_unread
    bad: defaultdict[str, list[str]] = defaultdict(list)
    for key, sent in history.events.items():
        stored, lettered = rows[key], letters[key]
        if stored > 1:
            bad["stored more than once"].append(key)
        came = sent.carried if found.trims else in_log[key] + (key in lost)
        if lettered and stored + lettered > came:
            bad["both stored and a dead letter, though it came once"].append(key)
        match sent.outcome:
            case Outcome.ACKED if not stored and not lettered:
                if key not in lost:
                    bad["acknowledged, and neither stored nor a dead letter"].append(key)
                elif key not in lost_unread:
                    bad["acknowledged, lost by the log where no fault excuses that, and not stored"].append(key)
                elif in_log[key]:
                    bad["acknowledged, still in the log, and not stored"].append(key)
            case Outcome.ACKED if not found.trims and not in_log[key] and key not in lost:
                bad["acknowledged, and not in the log that never trims"].append(key)
            case Outcome.REFUSED if stored or lettered:
                bad["refused, and stored all the same"].append(key)
            case Outcome.REFUSED if in_log[key]:
                bad["refused, and in the log all the same"].append(key)
    return _worded("events", bad)


def _check_strangers(history: History, found: Found) -> list[str]:
    """Compare the stored events with the sent events."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    for where, some in (("stored", found.rows), ("dead letters", found.letters), ("in the log", found.log)):
        for one in some:
            sent = history.events.get(one.key)
            if sent is None:
                bad[f"{where} that nobody sent"].append(one.key or one.event_id or str(one.place))
            elif sent.digest != one.digest:
                bad[f"{where} with another content than was sent"].append(one.key)
            elif sent.given and one.event_id != given_id(one.key):
                bad[f"{where} under another id than was given"].append(one.key)
    return _worded("events", bad)


def _check_log(history: History, found: Found) -> list[str]:
    """Compare the log with the sent events and with the records that the machine lost."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    lost_places = {record.place for record in found.lost}
    for hole in found.holes:
        name = f"{hole.partition}:{hole.first}-{hole.end - 1}"
        if not hole.declared:
            bad["a hole that the log does not declare"].append(name)
        # A hole that the log declares must match the lost records. It may not skip other offsets.
        elif any(Place(hole.partition, offset) not in lost_places for offset in range(hole.first, hole.end)):
            bad["a declared hole over offsets that no fault has lost"].append(name)
    return _worded("holes", bad)


def _check_offsets(history: History, found: Found) -> list[str]:
    """Every offset below the stored one is a row, a dead letter, or a record whose event is stored elsewhere.

    Trimmed records are gone. So the trimmed offsets without a row may be at most as many as the repeated sends.
    """
    bad: defaultdict[str, list[str]] = defaultdict(list)
    others = {log_id for log_id, _ in found.stored_offsets} - {found.log_id}
    if others:
        bad["offsets of another log"] += sorted(others)
    at = _by_place([*found.rows, *found.letters], bad)
    log = {record.place: record for record in found.log}
    stored_ids = {one.event_id for one in (*found.rows, *found.letters)}
    lost = {record.place: record for record in found.lost}
    holes = {
        Place(hole.partition, offset) for hole in found.holes if hole.declared for offset in range(hole.first, hole.end)
    }
    trimmed = 0  # trimmed offsets without a row, a dead letter or a lost record
    for (log_id, partition), next_offset in found.stored_offsets.items():
        if log_id != found.log_id:
            continue
        begin = found.begins.get(partition, 0)
        if begin > next_offset:
            bad["not stored, and below the log's beginning"].append(f"{partition}:{next_offset}-{begin - 1}")
        for offset in range(0 if found.trims else begin, next_offset):
            place = Place(partition, offset)
            if found.trims and offset < begin:
                trimmed += place not in at and place not in lost
                continue
            what = _wrong_at(at.get(place), log.get(place), lost.get(place), stored_ids, is_hole=place in holes)
            if what is not None:
                bad[what].append(f"{partition}:{offset}")
    again = sum(max(0, sent.carried - 1) for sent in history.events.values())
    if trimmed > again:
        bad["trimmed without a row"] += [f"where {again} at most came again"] * (trimmed - again)
    beyond = [place for place in at if place.offset >= found.stored_offsets.get((found.log_id, place.partition), 0)]
    if beyond:
        bad["stored from beyond the stored offset"] += [f"{place.partition}:{place.offset}" for place in sorted(beyond)]
    return _worded("offsets", bad)


def _wrong_at(
    stored: Stored | None, record: Stored | None, lost: Stored | None, stored_ids: Set[str], *, is_hole: bool
) -> str | None:
    """The error at an offset below the stored offset; the arguments are its stored, logged and lost records."""
    if stored is None:
        if record is None:
            is_explained = is_hole or lost is not None
            return None if is_explained else "below the stored offset, and neither stored nor in the log"
        return None if record.event_id in stored_ids else "below the stored offset, in the log, and not stored"
    if record is None:
        is_explained = lost is not None and lost.event_id == stored.event_id
        return None if is_explained else "stored from an offset that the log never had"
    if record.event_id != stored.event_id:
        return "offsets that were used twice: the log holds another event there than was stored"
    return None


def _by_place(stored: Iterable[Stored], bad: defaultdict[str, list[str]]) -> dict[Place, Stored]:
    """Rows and dead letters by their place in the log."""
    at: dict[Place, Stored] = {}
    for one in stored:
        if one.place in at:
            bad["stored twice from one offset"].append(f"{one.place.partition}:{one.place.offset}")
        at[one.place] = one
    return at


def _check_samples(samples: Sequence[OffsetSample]) -> list[str]:
    """The stored offset never falls."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    highest: dict[tuple[str, int], int] = {}
    for at, log_id, partition, next_offset in samples:
        before = highest.get((log_id, partition), 0)
        if next_offset < before:
            bad["where the stored offset fell"].append(f"{partition}: {before} to {next_offset} at {at:.3f}")
        highest[log_id, partition] = max(before, next_offset)
    return _worded("moments", bad)


def _worded(what: str, bad: dict[str, list[str]]) -> list[str]:
    """One sentence for each kind of violation, with some examples."""
    return [
        f"{len(names)} {what}: {kind} ({', '.join(names[:SHOWN_MAX])}{', …' if len(names) > SHOWN_MAX else ''})"
        for kind, names in bad.items()
    ]
