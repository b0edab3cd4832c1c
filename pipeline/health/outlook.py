"""Measures of the last seconds: traffic, pace, and how long each partition has stored nothing.

The input is the entries of the history, or the samples of one process. The times are those of the reader's clock: its
own monotonic clock if it runs continuously, the entries' own times if it reads once.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.health.snapshot import PACE_SECONDS, LevelTraffic, Outlook, ProtocolTraffic, Traffic
from pipeline.names import OTHER_PROTOCOLS, Level, ProtocolName, RecordOutcome
from pipeline.ports.history import COUNTS, LEVEL_COUNTS, PROTOCOL_COUNTS, HistoryEntry
from pipeline.settings import Settings

FRESH_SECONDS: Final = 5.0  # maximum age of a sample that counts as current
# Each process adds its counts once a second, at a time of its own. So the refusals of a second may belong to the rate
# of its own sample, or to one of the two before: as many rates are kept.
_RATES_KEPT: Final = 3
GAP_SECONDS: Final = 5.0  # if two entries are further apart, their difference gives no rate


@dataclass(frozen=True, slots=True)
class _Flow:
    """The traffic offered in the seconds before `at`."""

    at: float
    seconds: float
    counts: Mapping[str, float]
    rate: float | None  # the lowest rate that was admitted then, events/s, as the process saw it that wrote the entry


class Lookout:
    """Keeps the last seconds. Not for use by two threads at once; `seen` returns a value that any thread may read."""

    def __init__(self, settings: Settings) -> None:
        self._refused_seconds = settings.refused_seconds
        entries_max = int(max(settings.refused_seconds, PACE_SECONDS)) + 10
        self._flows: deque[_Flow] = deque(maxlen=entries_max)
        self._own_flows: deque[_Flow] = deque(maxlen=entries_max)
        self._rates: deque[float] = deque(maxlen=_RATES_KEPT)  # of the newest entries; those that are known
        self._own_rates: deque[float] = deque(maxlen=_RATES_KEPT)
        self._consumed: deque[tuple[float, int]] = deque(maxlen=int(PACE_SECONDS) + 2)
        self._levels: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=int(PACE_SECONDS) + 2)
        self._protocols: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=int(PACE_SECONDS) + 2)
        self._last: HistoryEntry | None = None
        self._at = float("-inf")  # of the newest sample
        self._offsets: dict[int, tuple[int, float]] = {}  # offset, and the time since when it is unchanged
        self._lags: dict[int, int] = {}
        self._sampled_at: float | None = None
        self._tokens: tuple[float, float] | None = None

    @property
    def position(self) -> str:
        """The position in the history from which to continue reading."""
        return "" if self._last is None else self._last.id

    def note_entries(self, entries: Sequence[HistoryEntry], *, now: float | None = None) -> None:
        """Add entries of the whole system's history, on the clock of `now`: the newest entry gets the time `now`.

        Without `now`, the newest entry keeps its own time. Times never go back: where the store's clock was set back
        between two entries, no time passed between them.
        """
        if not entries:
            return
        for entry, at_most in zip(entries, _times(entries, entries[-1].at if now is None else now), strict=True):
            at = max(self._at, at_most)
            before, self._last = self._last, entry
            _add_rate(self._rates, entry.sample.get("rate"))
            flow = None if before is None else _flow(before, entry, at, min(self._rates, default=None))
            if flow is not None:
                self._flows.append(flow)
            if len(entry.levels) == len(LEVEL_COUNTS):
                self._levels.append((at, entry.levels))
            if len(entry.protocols) == len(PROTOCOL_COUNTS) and len(entry.counts) == len(COUNTS):
                totals = dict(zip((*COUNTS, *PROTOCOL_COUNTS), (*entry.counts, *entry.protocols), strict=True))
                self._protocols.append((at, totals))
            self.note_sample(entry.sample, at)

    def note_own(self, counts: Mapping[str, int], seconds: float, now: float, rate: float | None = None) -> None:
        """Add this process' own counts, and the rate that held; they are used only if there is no history."""
        _add_rate(self._own_rates, rate)
        self._own_flows.append(_Flow(now, seconds, counts, min(self._own_rates, default=None)))

    def note_sample(self, sample: Mapping[str, Any], at: float) -> None:
        """Add a sample of how far the log was consumed, according to the log."""
        self._at = at
        if sample.get("tokens") is not None:
            self._tokens = (at, sample["tokens"])
        lags, consumed = sample.get("lags"), sample.get("consumed")
        if lags is None or consumed is None:
            return
        if self._consumed and consumed < self._consumed[-1][1]:
            self._consumed.clear()  # another log
        self._consumed.append((at, consumed))
        self._lags, self._sampled_at = dict(enumerate(lags)), at
        offsets = sample.get("offsets", ())  # earlier versions did not write them
        before, is_paused = self._offsets, bool(sample.get("paused"))
        self._offsets = {}
        for partition, (lag, offset) in enumerate(zip(lags, offsets, strict=False)):
            known, since = before.get(partition, (None, at))
            stays = known == offset and lag > 0 and not is_paused and since <= at
            self._offsets[partition] = (offset, since if stays else at)

    def seen(self, now: float) -> Outlook:
        """The current measures."""
        tokens = None if self._tokens is None or now - self._tokens[0] > FRESH_SECONDS else self._tokens[1]
        if self._sampled_at is None or now - self._sampled_at > FRESH_SECONDS:
            return Outlook(traffic=self._traffic(now), bucket_tokens=tokens)
        newest = self._sampled_at
        return Outlook(
            traffic=self._traffic(now),
            lag_by_partition=self._lags,
            drain_rate=_pace(self._consumed),
            no_progress_seconds={
                partition: newest - since for partition, (_, since) in self._offsets.items() if self._lags[partition]
            },
            bucket_tokens=tokens,
        )

    def _traffic(self, now: float) -> Traffic | None:
        is_known = bool(self._flows) and now - self._flows[-1].at <= FRESH_SECONDS
        flows = self._flows if is_known else self._own_flows
        if not flows or now - flows[-1].at > FRESH_SECONDS:
            return None
        lately = [flow for flow in flows if flow.at > now - PACE_SECONDS]
        counted = [flow for flow in flows if flow.at > now - self._refused_seconds] or lately
        seconds = sum(flow.seconds for flow in lately)
        refused = _sum(counted, "refused")
        offered = refused + _sum(counted, "admitted")
        answers = _sum(counted, "unavailable") + _sum(counted, "limited")
        return Traffic(
            admitted=_sum(lately, "admitted") / seconds,
            refused=_sum(lately, "refused") / seconds,
            refused_share=refused / offered if offered else 0.0,
            unavailable_share=_sum(counted, "unavailable") / answers if answers else 0.0,
            share_seconds=self._refused_seconds,
            refused_at=_refused_at(counted),
            levels=self._traffic_by_level(now) if is_known else {},
            protocols=self._traffic_by_protocol(now) if is_known else {},
        )

    def _traffic_by_level(self, now: float) -> dict[Level, LevelTraffic]:
        """The traffic of each level; empty if no process counts levels."""
        lately = [one for one in self._levels if one[0] > now - PACE_SECONDS]
        if len(lately) < 2:
            return {}
        (first_at, first), (last_at, last) = lately[0], lately[-1]
        growth = [new - old for old, new in zip(first, last, strict=True)]
        seconds = last_at - first_at
        if seconds <= 0 or min(growth) < 0:  # a flush was between them
            return {}
        count = dict(zip(LEVEL_COUNTS, growth, strict=True))
        return {
            level: LevelTraffic(count[f"{level.label} accepted"] / seconds, count[f"{level.label} refused"] / seconds)
            for level in Level
        }

    def _traffic_by_protocol(self, now: float) -> dict[ProtocolName, ProtocolTraffic]:
        """The traffic of each protocol that was used; empty if only Sluice's own was."""
        lately = [one for one in self._protocols if one[0] > now - PACE_SECONDS]
        if len(lately) < 2:
            return {}
        (first_at, first), (last_at, last) = lately[0], lately[-1]
        seconds = last_at - first_at
        if seconds <= 0 or any(last[name] < total for name, total in first.items()):  # a flush was between them
            return {}
        found = {}
        for name in ProtocolName:
            totals = [_of_protocol(last, name, outcome) for outcome in RecordOutcome]
            if any(totals):
                before = [_of_protocol(first, name, outcome) for outcome in RecordOutcome]
                rates = [max(0, new - old) / seconds for old, new in zip(before, totals, strict=True)]
                found[name] = ProtocolTraffic(*rates)
        return found


def _of_protocol(totals: Mapping[str, int], name: ProtocolName, outcome: RecordOutcome) -> int:
    """The records of a protocol: Sluice's own has what the others do not have, and rejects whole bodies only."""
    if name is not ProtocolName.EVENTS:
        return totals[f"{name.value} {outcome.value}"]
    if outcome is RecordOutcome.REJECTED:
        return 0
    total = totals["admitted" if outcome is RecordOutcome.ACCEPTED else "refused"]
    return max(0, total - sum(_of_protocol(totals, other, outcome) for other in OTHER_PROTOCOLS))


def outlook_of(entries: Sequence[HistoryEntry], settings: Settings, now: float) -> Outlook:
    """The measures for a reader that reads the entries once; `now` is by the clock of the entries."""
    lookout = Lookout(settings)
    lookout.note_entries(entries)
    return lookout.seen(now)


def _times(entries: Sequence[HistoryEntry], newest: float) -> list[float]:
    """When the entries were written, on a clock that was never set back and shows `newest` at the last one."""
    times = [newest]
    for entry, after in zip(reversed(entries[:-1]), reversed(entries), strict=False):
        times.append(times[-1] - max(0.0, after.at - entry.at))
    return times[::-1]


def _add_rate(rates: deque[float], rate: float | None) -> None:
    if rate is not None:
        rates.append(rate)


def _flow(before: HistoryEntry, entry: HistoryEntry, at: float, rate: float | None) -> _Flow | None:
    """The difference of two entries' totals, if they are close together and there was no flush between them."""
    if len(before.counts) != len(COUNTS) or len(entry.counts) != len(COUNTS):  # another version has other counts
        return None
    seconds = entry.at - before.at
    growth = [new - old for old, new in zip(before.counts, entry.counts, strict=True)]
    if not 0 < seconds <= GAP_SECONDS or min(growth) < 0:
        return None
    return _Flow(at, seconds, dict(zip(COUNTS, growth, strict=True)), rate)


def _pace(consumed: Sequence[tuple[float, int]]) -> float | None:
    """Events/s stored over the last PACE_SECONDS; None if unknown."""
    lately = [one for one in consumed if consumed[-1][0] - one[0] <= PACE_SECONDS]
    (first_at, first), (last_at, last) = lately[0], lately[-1]
    return None if last_at - first_at < 1.0 else (last - first) / (last_at - first_at)


def _sum(flows: Sequence[_Flow], name: str) -> float:
    return sum(flow.counts[name] for flow in flows)


def _refused_at(flows: Sequence[_Flow]) -> dict[float, float]:
    """The events that were refused, by the rate that held."""
    found: dict[float, float] = {}
    for flow in flows:
        if flow.rate is not None and flow.counts["refused"]:
            found[flow.rate] = found.get(flow.rate, 0.0) + flow.counts["refused"]
    return found
