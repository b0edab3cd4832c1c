"""Checks the control loop: rates, lag, pauses, health, and that every partition makes progress.

The policy is repeated here, so that a mutant of the system's policy does not change its judge.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from checks.soak.found import Stored
from checks.soak.seen import ControlSample, HealthSample, LagSample, Seen
from checks.soak.windows import EVERYTHING, Part, Windows

STAND_SECONDS_MAX = 10.0  # outside a fault
BOOT_SECONDS = 10.0  # added if a worker had to restart
PAUSE_SECONDS = 2.5  # from a pause until a running batch is stored
HEARD_SECONDS = 3.0  # until a change of the control store reaches ingest
SILENT_SECONDS = 3.0  # without a publication: from then on, health may report the log's own lag
BLIND_SECONDS = 0.5  # between two samples: the watcher misses a change that began and ended between them
RATE_TOLERANCE = 0.01
_LAST_SECONDS = 10.0  # after a repair: the effects of its fault may still show
_PERIOD_SECONDS_MAX = 2.0  # between two samples: a longer gap breaks the series
_CONTROL_SAMPLES_MIN = 5


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """The policy of a run: full rate below one lag, the floor above another, a straight line between."""

    rate_max: float
    rate_min: float
    lag_degraded: int
    lag_critical: int
    # How far a published lag may be from every sample around it: events arrive and are stored between two samples.
    lag_tolerance: int

    def rate(self, lag: int) -> float:
        """The rate (events/s) for a lag in events."""
        share = (lag - self.lag_degraded) / (self.lag_critical - self.lag_degraded)
        return self.rate_max - (self.rate_max - self.rate_min) * min(1.0, max(0.0, share))


def check_control(seen: Seen, rows: Iterable[Stored], windows: Windows, rules: PolicyRules) -> dict[str, list[str]]:
    """Wrong moments by kind of error."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    _check_rates(seen.control, windows, rules, bad)
    _check_lags(seen, windows, rules, bad)
    _check_trims(seen.lags, bad)
    _check_health(seen, windows, rules, bad)
    _check_pauses(seen.control, rows, windows, bad)
    _check_partitions(seen, windows, bad)
    _check_loop(seen.control, windows, bad)
    return bad


def _check_rates(
    samples: Sequence[ControlSample], windows: Windows, rules: PolicyRules, bad: defaultdict[str, list[str]]
) -> None:
    """The published rate matches the policy's rate for the lag that was published with it."""
    last: ControlSample | None = None
    for one in samples:
        if one.rate is None or one.base_rate is None:
            continue
        if last is not None and last.version == one.version:
            continue
        is_floor = abs(one.base_rate - rules.rate_min) <= RATE_TOLERANCE
        words = f"{one.base_rate:.1f} events/s with lag {one.lag} at {one.at:.3f}"
        if one.lag is None:
            # The rate starts at the floor. It may stay or fall.
            highest = rules.rate_min if last is None else max(last.base_rate or 0.0, rules.rate_min)
            if one.base_rate > highest + RATE_TOLERANCE:
                bad["where the rate rose though the lag was not known"].append(words)
        elif abs(one.base_rate - rules.rate(one.lag)) > RATE_TOLERANCE and not (
            # After a flush, while PostgreSQL is unavailable, the breaker's state is unknown.
            is_floor and windows.touching((Part.DATABASE, Part.CONTROL), one.at, one.at, after_seconds=_LAST_SECONDS)
        ):
            bad["where the published rate was not what the policy gives for its lag"].append(words)
        is_open = one.breaker in ("open", "half-open")
        allowed = min(one.base_rate, rules.rate_min) if is_open else one.base_rate
        if one.rate > allowed + RATE_TOLERANCE:
            bad["where the effective rate was above the decided one"].append(f"{one.rate:.1f} at {one.at:.3f}")
        last = one


def _check_lags(seen: Seen, windows: Windows, rules: PolicyRules, bad: defaultdict[str, list[str]]) -> None:
    """The published lag is near the lag that the log and PostgreSQL showed at that time."""
    times = [one.at for one in seen.lags]
    last_version, last_published, looked_at = None, None, None
    for one in seen.control:
        since, looked_at = one.at if looked_at is None else looked_at, one.at
        # A change of the breaker has its own version and repeats the lag that was published before it.
        if one.published_at == last_published:
            continue
        last_published = one.published_at
        # A control server that came back with older data shows an earlier lag until the next tick.
        is_earlier = last_version is not None and one.version < last_version
        last_version = one.version
        if is_earlier and windows.touching((Part.CONTROL,), one.at, one.at, after_seconds=_LAST_SECONDS):
            continue
        # It may have been published at any time since the previous sample. An unavailable server gives no samples.
        around = seen.lags[bisect_left(times, since - 2.5) : bisect_right(times, one.at + 1.0)]
        # This needs samples before and after it, without a pause of the machine between them.
        if one.lag is None or len(around) < 4 or around[-1].at < one.at:
            continue
        if windows.touching((Part.LOG,), one.at - 3, one.at + 1, after_seconds=_LAST_SECONDS):
            continue
        low, high = min(sample.lag for sample in around), max(sample.lag for sample in around)
        words = f"{one.lag} at {one.at:.3f}, where it was {low} to {high}"
        if one.lag < low - rules.lag_tolerance:
            bad["where the published lag was too low"].append(words)
        # The log gets the stored offset later than PostgreSQL. It counts alone while PostgreSQL is unavailable.
        elif one.lag > high + rules.lag_tolerance and not windows.touching(
            (Part.DATABASE,), one.at - 3, one.at + 1, after_seconds=_LAST_SECONDS
        ):
            bad["where the published lag was too high"].append(words)


def _check_trims(samples: Sequence[LagSample], bad: defaultdict[str, list[str]]) -> None:
    """The log never begins after the stored offset."""
    for sample in samples:
        bad_ones = [
            f"{partition}: begins at {one.begin}, stored up to {one.stored} at {sample.at:.3f}"
            for partition, one in sample.partitions.items()
            if one.is_fresh and one.begin > one.stored
        ]
        if bad_ones:
            bad["where the log began behind what was stored"] += bad_ones


def _check_health(seen: Seen, windows: Windows, rules: PolicyRules, bad: defaultdict[str, list[str]]) -> None:
    """Health reports values of breaker, pauses, lag and rate that were true in the last seconds.

    Only two wrong answers in a row count: the machine may have paused a process for a moment.
    """
    times = [one.at for one in seen.control]
    silent = _silences(seen.control)
    before: dict[int, frozenset[str]] = {}  # the errors of each process' last answer
    for one in seen.health:
        wrong: set[str] = set()
        if not windows.touching((Part.INGEST,), one.at - HEARD_SECONDS, one.at, after_seconds=_LAST_SECONDS):
            wrong |= _wrong_alone(one, windows)
            if not windows.touching((Part.CONTROL,), one.at - HEARD_SECONDS, one.at, after_seconds=HEARD_SECONDS):
                first, end = bisect_left(times, one.at - HEARD_SECONDS), bisect_right(times, one.at)
                # The next sample counts too: health may already report a change that began between two samples.
                known = seen.control[first : end + 1]
                is_blind = 0 < end < len(times) and times[end] - times[end - 1] > BLIND_SECONDS
                if one.status is not None and len(known) >= _CONTROL_SAMPLES_MIN and not is_blind:
                    speaks = max(silent[first:end]) < SILENT_SECONDS
                    wrong |= _wrong_beside(one, known, rules, speaks=speaks)
        for what in sorted(wrong & before.get(one.ingest, frozenset())):
            told = f"{one.status}, lag {one.lag}, {one.rate} events/s, {one.breaker}, {one.consumption}"
            bad[what].append(f"ingest-{one.ingest} at {one.at:.3f}: {told}")
        before[one.ingest] = frozenset(wrong)


def _silences(samples: Sequence[ControlSample]) -> list[float]:
    """For each sample, the seconds since the controller's last publication."""
    found: list[float] = []
    since, published_at = 0.0, None
    for one in samples:
        if one.published_at != published_at or not found:
            since, published_at = one.at, one.published_at
        found.append(one.at - since)
    return found


def _wrong_alone(one: HealthSample, windows: Windows) -> set[str]:
    """The errors of an answer that do not depend on the control store."""
    if one.status is None:
        return {"where health did not answer"}
    wrong = set()
    if (one.status == "healthy") != (one.reasons == 0):
        wrong.add("where health gave no reason for what it said")
    if one.status == "healthy" and windows.was_dead(Part.LOG, one.at, one.at, since_seconds=HEARD_SECONDS):
        wrong.add("where health said healthy though it was not")
    return wrong


def _wrong_beside(one: HealthSample, known: Sequence[ControlSample], rules: PolicyRules, *, speaks: bool) -> set[str]:
    """The errors of an answer, compared with the control store in the seconds before it and in the next sample.

    `speaks`: the controller was never silent in the seconds before.
    """
    wrong = set()
    breakers = {sample.breaker for sample in known}
    if breakers & {"open", "half-open"}:
        # A try of the prober may begin and end between two samples, or begin right after the breaker opened.
        breakers |= {"open", "half-open"}
    # A process that could not read the control store for seconds reports "unknown"; the machine may be busy.
    if one.breaker not in breakers and one.breaker != "unknown":
        wrong.add("where health reported a wrong state of the breaker")
    paused = [bool(sample.paused) for sample in known if sample.paused is not None]
    is_paused, is_running = bool(paused) and all(paused), bool(paused) and not any(paused)
    everywhere = bool(paused) and all(None in (sample.paused or ()) for sample in known)
    if (everywhere and one.consumption == "running") or (is_running and one.consumption == "paused"):
        wrong.add("where health reported a wrong pause state")
    is_far = all(sample.lag is not None and sample.lag > rules.lag_critical for sample in known)
    if one.status == "healthy" and (is_far or is_paused or breakers <= {"open", "half-open"}):
        wrong.add("where health said healthy though it was not")
    # If the controller is silent, health reports the log's own lag, and gives the silence as a reason.
    versions = {sample.version for sample in known}
    if max(versions) - min(versions) >= len(versions):
        return wrong  # the watcher missed publications, and health may report one of them
    if speaks and one.lag is not None and one.lag not in {sample.lag for sample in known}:
        wrong.add("where health reported a lag that was not published")
    rates = {sample.rate for sample in known if sample.rate is not None}
    # A process that can't reach the bucket uses its own rate, and reports this as a reason.
    if one.rate is not None and one.reasons == 0 and rates and not any(abs(one.rate - rate) < 0.1 for rate in rates):
        wrong.add("where health reported a rate that was not published")
    return wrong


def _check_pauses(
    samples: Sequence[ControlSample], rows: Iterable[Stored], windows: Windows, bad: defaultdict[str, list[str]]
) -> None:
    """Nothing is stored while consumption is paused, except a batch that was already running."""
    spans = _pauses(samples)
    judged: dict[int | None, list[tuple[float, float]]] = {}
    for partition, some in spans.items():
        disturbers = (Part.WORKERS, Part.DATABASE, Part.CONTROL)
        judged[partition] = [
            (start + PAUSE_SECONDS, end)
            for start, end in some
            if end - start > PAUSE_SECONDS and not windows.touching(disturbers, start, end, after_seconds=_LAST_SECONDS)
        ]
    if not any(judged.values()):
        return
    for row in rows:
        at = row.stored_at
        if at is not None:
            for partition in (None, row.place.partition):
                if any(start <= at <= end for start, end in judged.get(partition, ())):
                    bad["where a row was stored though consumption was paused"].append(f"{row.key} at {at:.3f}")


def _pauses(samples: Sequence[ControlSample]) -> dict[int | None, list[tuple[float, float]]]:
    """By partition (None: all), the start and end of each unbroken pause that was seen."""
    spans: defaultdict[int | None, list[tuple[float, float]]] = defaultdict(list)
    since: dict[int | None, float] = {}
    last_at = 0.0
    for one in samples:
        paused = one.paused or frozenset()
        if one.at - last_at > _PERIOD_SECONDS_MAX:
            paused_before: frozenset[int | None] = frozenset()
        else:
            paused_before = frozenset(since)
        for partition in [*since]:
            if partition not in paused or partition not in paused_before:
                spans[partition].append((since.pop(partition), last_at))
        for partition in paused:
            since.setdefault(partition, one.at)
        last_at = one.at
    for partition, start in since.items():
        spans[partition].append((start, last_at))
    return spans


def _check_partitions(seen: Seen, windows: Windows, bad: defaultdict[str, list[str]]) -> None:
    """A partition with lag progresses outside faults and pauses. Time counts in samples: a busy machine has fewer."""
    times = [one.at for one in seen.control]
    stood: defaultdict[int, float] = defaultdict(float)
    told: set[int] = set()
    last: LagSample | None = None
    for sample in seen.lags:
        period = 0.0 if last is None else min(sample.at - last.at, 1.0)
        index = bisect_right(times, sample.at) - 1
        paused = seen.control[index].paused if index >= 0 else None
        excused = bool(windows.touching(EVERYTHING, sample.at, sample.at)) or (index >= 0 and paused is None)
        boots = windows.touching((Part.WORKERS, Part.LOOP), sample.at, sample.at, after_seconds=4 * STAND_SECONDS_MAX)
        for partition, one in sample.partitions.items():
            before = None if last is None else last.partitions.get(partition)
            moves = before is None or before.stored != one.stored or one.lag == 0 or not one.is_fresh
            if moves or excused or (paused is not None and paused & {None, partition}):
                stood[partition] = 0.0
                told.discard(partition)
                continue
            stood[partition] += period
            if stood[partition] > STAND_SECONDS_MAX + (BOOT_SECONDS if boots else 0.0) and partition not in told:
                told.add(partition)
                bad["where a partition with lag had stood still outside a fault"].append(
                    f"partition {partition} at offset {one.stored} of {one.end}, {sample.at:.3f}"
                )
        last = sample


def _check_loop(samples: Sequence[ControlSample], windows: Windows, bad: defaultdict[str, list[str]]) -> None:
    """The controller keeps publishing outside faults."""
    stood = 0.0
    last: ControlSample | None = None
    for one in samples:
        if last is not None:
            period = min(one.at - last.at, 1.0)
            is_excused = windows.touching(EVERYTHING, one.at, one.at)
            before = stood
            stood = 0.0 if one.version != last.version or is_excused else stood + period
            boots = windows.touching((Part.LOOP,), one.at, one.at, after_seconds=4 * STAND_SECONDS_MAX)
            limit = STAND_SECONDS_MAX + (BOOT_SECONDS if boots else 0.0)
            if before <= limit < stood:
                bad["where the controller had not published outside a fault"].append(f"since {one.at - stood:.3f}")
        last = one
