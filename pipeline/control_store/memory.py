"""The control store in memory, for tests and simulation. It behaves like the Redis adapters.

Displayed times are those of the wall clock. Decisions use the monotonic clock.
"""

import threading
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from pipeline.clock import Clock, SystemClock
from pipeline.control_store.common import (
    BY_CHARS_MAX,
    CALL_SECONDS_MAX,
    PROCESS_SECONDS_MAX,
    TROUBLE_SECONDS,
    WHY_CHARS_MAX,
    account_limit_data,
    bounded_alarms,
    bounded_trouble,
    breaker_state,
    clean_text,
    folded_data,
    rate_event_why,
    repeated_event,
    without_override,
)
from pipeline.errors import FencedError, StoreUnavailableError
from pipeline.flow import bucket as bucket_flow
from pipeline.flow.rate import Decay, LowRate, capped_by_breaker, lowest_since, with_low_rate
from pipeline.flow.refusals import SLICES_MAX, WINDOW_SECONDS, Refusals, together
from pipeline.flow.shares import Offered, Shares
from pipeline.keys import ApiKey
from pipeline.names import LEASE_PROBE, LEVEL_HIGHEST, ControlEventKind, Level, Mode, PauseReason
from pipeline.ports.bucket import Grant
from pipeline.ports.control import (
    Alarm,
    Bands,
    Consumption,
    ControlEvent,
    ControlState,
    Mirror,
    OperatorLimit,
    OperatorPause,
    Override,
    Pause,
    PauseState,
    PublishedRate,
    Trouble,
)
from pipeline.ports.keys import MirroredKeys, mirrored_version
from pipeline.ports.offers import REPORT_SECONDS_MAX
from pipeline.ports.rate import PolicyRecord
from pipeline.settings import Settings


@dataclass
class _LowestOffsets:
    life: str
    incarnation: str | None = None
    is_complete: bool = False
    offsets: dict[int, int] = field(default_factory=dict)


@dataclass
class _Content:
    """The data that a flush loses."""

    rate: PublishedRate | None = None
    recorded_rate: float | None = None  # the effective rate of the last control event about it
    low_rates: tuple[LowRate, ...] = ()
    floor_rate: float = 0.0
    pauses: dict[tuple[str, int | None], Pause] = field(default_factory=dict)  # by the reason's name and partition
    complete: bool = False
    generation: int = 0
    rate_at: float = 0.0  # when it was published; this time and all times below are monotonic
    override: Override | None = None
    override_at: float = 0.0  # when it was set
    bands: Bands | None = None
    accounts: dict[str, OperatorLimit] = field(default_factory=dict)
    has_accounts: bool = False  # `accounts` is complete
    keys: MirroredKeys | None = None
    events: list[ControlEvent] = field(default_factory=list)
    bucket: bucket_flow.BucketState | None = None
    bucket_version: int = 0  # of the rate at the bucket's last call
    ran_dry: int = 0  # calls to the bucket for which Taken.ran_dry is true
    processes: dict[str, float] = field(default_factory=dict)
    lowest_offsets: dict[str, _LowestOffsets] = field(default_factory=dict)
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    progress: dict[str, tuple[float, dict[int, tuple[int, float]]]] = field(default_factory=dict)
    offers: dict[str, tuple[float, Offered]] = field(default_factory=dict)  # by process, with the time of the report
    # By process and slice, with the time of the report.
    throttle: dict[tuple[str, int], tuple[float, Refusals]] = field(default_factory=dict)
    troubles: dict[str, list[Trouble]] = field(default_factory=dict)
    troubles_at: dict[str, float] = field(default_factory=dict)  # time of the report, by process


class MemoryServer:
    """The server that the adapters of one system share, as a Redis server. `is_unavailable` stops its responses."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.is_unavailable = False
        self.changed = threading.Condition(threading.RLock())
        self._content = _Content()
        self._last_event_number = 0
        self.process = uuid.uuid4().hex

    def flush(self) -> None:
        """Lose everything."""
        with self.changed:
            self._content = _Content()

    def remember(self) -> _Content:
        """A copy of the content, to which a later `restart` may return."""
        with self.changed:
            return deepcopy(self._content)

    def restart(self, content: _Content | None = None) -> None:
        """Come back as another process, with everything, or with the content of `remember` (an older file)."""
        with self.changed:
            self.process = uuid.uuid4().hex
            self._content = self._content if content is None else deepcopy(content)

    def content(self) -> _Content:
        """The content; hold `changed` while using it. Raises StoreUnavailableError."""
        if self.is_unavailable:
            raise StoreUnavailableError
        return self._content

    def next_event_id(self) -> str:
        """A position later than all earlier ones, even after a flush."""
        self._last_event_number += 1
        return f"{self._last_event_number:020d}"


class _Adapter:
    _name = "memory"

    def __init__(self, settings: Settings, server: MemoryServer) -> None:
        self._settings = settings
        self._server = server

    def _settle_override(self) -> None:
        """End an override whose time is up; the first caller does it."""
        content = self._server.content()
        if content.override is not None and self._override_left(content.override) <= 0:
            ended, content.override = content.override, None
            data = {"rate": repr(ended.rate)}
            self._record(ControlEventKind.OVERRIDE_ENDED, self._name, "its time was up", data)
            self._settle_rate(self._name, "the override ended")

    def _override_left(self, override: Override) -> float:
        """Seconds until it ends."""
        held_for = self._server.clock.monotonic() - self._server.content().override_at
        return override.until - override.since - held_for

    def _put_override(self, override: Override) -> None:
        content, now = self._server.content(), self._server.clock.now()
        content.override = override
        content.override_at = self._server.clock.monotonic() - max(0.0, now - override.since)

    def _settle_rate(self, actor: str, why: str) -> None:
        content, now = self._server.content(), self._server.clock.now()
        last = content.rate
        if last is None or last.rate == _effective(content, last.base_rate):
            return
        rate = _effective(content, last.base_rate)
        content.rate = replace(last, rate=rate, version=_next_version(last, now))
        content.low_rates = with_low_rate(content.low_rates, content.rate.version, rate)
        self._record_rate(content.rate, last.rate, actor, why)

    def _record_rate(self, rate: PublishedRate, previous: float | None, actor: str, why: str) -> None:
        content = self._server.content()
        data = {
            "rate": repr(rate.rate),
            "decided_by": _decided_by(self._server.content(), rate.base_rate),
            "base_rate": repr(rate.base_rate),
            "mode": rate.mode.value,
            "lag": "" if rate.lag is None else str(rate.lag),
            "version": str(rate.version),
            "previous": "" if previous is None else repr(previous),
            "policy_reason": "" if rate.policy is None else rate.policy.explanation.reason,
        }
        if rate.policy is not None and rate.policy.explanation.event_ratio > 0:
            data["event_ratio"] = repr(rate.policy.explanation.event_ratio)
        content.recorded_rate = rate.rate
        self._record(ControlEventKind.RATE_CHANGED, actor, why, data)

    def _record(self, kind: ControlEventKind, actor: str, why: str, data: dict[str, str]) -> None:
        events = self._server.content().events
        at = self._server.clock.now()
        actor, why = clean_text(actor, BY_CHARS_MAX), clean_text(why, WHY_CHARS_MAX)
        event = ControlEvent(self._server.next_event_id(), at, kind, actor, why, data)
        earlier = repeated_event(events, kind, data, at)
        if earlier is not None:
            events.remove(earlier)
            first_at = earlier.at if earlier.first_at is None else earlier.first_at
            data = folded_data(earlier, data)
            event = replace(event, data=data, count=earlier.count + 1, first_at=first_at)
        events.append(event)
        del events[: -self._settings.control_events_max]
        self._server.changed.notify_all()


class MemoryControlStore(_Adapter):
    """Shared control state; see ControlStore."""

    def state(self) -> ControlState:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.now()
            pauses = tuple(sorted(content.pauses.values(), key=lambda pause: pause.generation))
            probing = content.leases.get(LEASE_PROBE, ("", 0.0))[1] > self._server.clock.monotonic()
            rate, override = content.rate, content.override
            if override is not None and self._override_left(override) <= 0:
                rate, override = None if rate is None else without_override(rate, pauses, content.floor_rate), None
            elif override is not None:
                step = now + self._override_left(override) - override.until
                if abs(step) > CALL_SECONDS_MAX:
                    override = replace(override, since=override.since + step, until=override.until + step)
            return ControlState(
                rate=rate,
                pauses=pauses if content.complete else None,
                breaker=breaker_state(pauses, complete=content.complete, probing=probing),
                time=now,
                generation=content.generation,
                floor_rate=content.floor_rate,
                override=override,
                bands=content.bands,
                accounts=dict(content.accounts) if content.has_accounts else None,
                keys_version=None if content.keys is None else content.keys.version,
                bucket_ran_dry=content.ran_dry,
            )

    def pause_state(self) -> PauseState:
        state = self.state()
        return PauseState(state.pauses, state.breaker, state.time, state.generation)

    def publish_rate(
        self,
        *,
        base_rate: float,
        floor_rate: float,
        mode: Mode,
        lag: int | None,
        lag_known_at: float | None,
        actor: str,
        consumption: Consumption | None = None,
        alarms: Sequence[Alarm] = (),
        policy: PolicyRecord | None = None,
        shares: Shares | None = None,
    ) -> PublishedRate:
        with self._server.changed:
            self._settle_override()
            content, now = self._server.content(), self._server.clock.now()
            last = content.rate
            if last is not None and _is_stale(lag_known_at, last, now):
                return last
            content.floor_rate = floor_rate
            content.rate_at = self._server.clock.monotonic()
            content.rate = PublishedRate(
                version=_next_version(last, now),
                rate=_effective(content, base_rate),
                base_rate=base_rate,
                mode=mode,
                lag=lag,
                published_at=now,
                lag_known_at=lag_known_at,
                consumption=consumption,
                alarms=bounded_alarms(alarms),
                policy=policy,
                shares=shares,
            )
            ratio = 0.0 if policy is None else policy.explanation.event_ratio
            previous, rate = content.recorded_rate, content.rate.rate
            content.low_rates = with_low_rate(content.low_rates, content.rate.version, rate)
            is_notable = previous is None or abs(rate - previous) >= ratio * previous
            if last is None or (last.rate != rate and is_notable) or last.mode is not mode:
                self._record_rate(content.rate, previous, actor, rate_event_why(lag, policy))
            return content.rate

    def set_override(self, rate: float, *, until: float, actor: str, why: str) -> Override:
        with self._server.changed:
            self._settle_override()
            actor, why = clean_text(actor, BY_CHARS_MAX), clean_text(why, WHY_CHARS_MAX)
            override = Override(rate, until, actor, why, self._server.clock.now())
            self._put_override(override)
            data = {"rate": repr(float(rate)), "until": repr(float(until))}
            self._record(ControlEventKind.OVERRIDE_SET, actor, why, data)
            self._settle_override()
            self._settle_rate(actor, why)
            return override

    def clear_override(self, *, actor: str, why: str) -> bool:
        with self._server.changed:
            self._settle_override()
            content = self._server.content()
            if content.override is None:
                return False
            ended, content.override = content.override, None
            self._record(ControlEventKind.OVERRIDE_ENDED, actor, why, {"rate": repr(float(ended.rate))})
            self._settle_rate(actor, why)
            return True

    def set_bands(self, bands: Bands) -> None:
        with self._server.changed:
            self._server.content().bands = replace(
                bands, actor=clean_text(bands.actor, BY_CHARS_MAX), why=clean_text(bands.why, WHY_CHARS_MAX)
            )
            data = {
                "rate_max": repr(float(bands.rate_max)),
                "rate_min": repr(float(bands.rate_min)),
                "lag_degraded": str(bands.lag_degraded),
                "lag_critical": str(bands.lag_critical),
            }
            self._record(ControlEventKind.BANDS_SET, bands.actor, bands.why, data)

    def clear_bands(self, *, actor: str, why: str) -> bool:
        with self._server.changed:
            content = self._server.content()
            if content.bands is None:
                return False
            content.bands = None
            self._record(ControlEventKind.BANDS_SET, actor, why, {"bands": "settings"})
            return True

    def set_account_limit(self, asked: OperatorLimit) -> bool:
        with self._server.changed:
            accounts = self._server.content().accounts
            if asked.account not in accounts and len(accounts) >= self._settings.account_limits_max:
                return False
            actor, why = clean_text(asked.actor, BY_CHARS_MAX), clean_text(asked.why, WHY_CHARS_MAX)
            accounts[asked.account] = replace(asked, actor=actor, why=why)
            self._record(ControlEventKind.ACCOUNT_LIMIT_SET, actor, why, account_limit_data(asked))
            return True

    def clear_account_limit(self, account: str, *, actor: str, why: str) -> bool:
        with self._server.changed:
            if self._server.content().accounts.pop(account, None) is None:
                return False
            self._record(ControlEventKind.ACCOUNT_LIMIT_ENDED, actor, why, {"account": account})
            return True

    def restore_account_limits(self, asked: Sequence[OperatorLimit], *, actor: str) -> bool:
        with self._server.changed:
            content = self._server.content()
            if content.has_accounts:
                return False
            content.has_accounts = True
            missing = {one.account: one for one in asked if one.account not in content.accounts}
            content.accounts |= missing
            if missing:
                data = {"reasons": "account_limits"}
                self._record(ControlEventKind.STATE_RESTORED, actor, "the control store was empty", data)
            return True

    def pause(self, reason: PauseReason, *, actor: str, why: str, partition: int | None = None) -> int:
        with self._server.changed:
            self._settle_override()
            held = self._covering(reason.value, partition)
            if held is not None:
                return held.generation
            generation = self._add(OperatorPause(reason, actor, why, self._server.clock.now(), partition))
            data = {"reason": reason.value, "generation": str(generation)} | _of_partition(partition)
            if reason is PauseReason.BREAKER:
                self._record(ControlEventKind.BREAKER_OPENED, actor, why, data)
                why = "the breaker opened"  # the error is recorded once
            self._record(ControlEventKind.PAUSED, actor, why, data)
            self._settle_rate(actor, why)
            return generation

    def resume(
        self, reason: PauseReason, *, generation: int | None, actor: str, why: str, partition: int | None = None
    ) -> bool:
        with self._server.changed:
            self._settle_override()
            content = self._server.content()
            found = [
                one for one in content.pauses.values()
                if one.reason is reason and (partition is None or one.partition == partition)
            ]  # fmt: skip
            held = min(found, key=lambda one: one.generation, default=None)
            if held is None or generation not in (None, held.generation):
                return False
            for one in found:
                del content.pauses[one.name, one.partition]
            content.generation += 1
            left = " ".join(sorted(_word(*other) for other in content.pauses))
            data = {"reason": reason.value, "generation": str(held.generation), "left": left} | _of_partition(partition)
            if reason is PauseReason.BREAKER:
                self._record(ControlEventKind.BREAKER_CLOSED, actor, why, data)
                why = "the breaker closed"
            self._record(ControlEventKind.RESUMED, actor, why, data)
            self._settle_rate(actor, why)
            return True

    def restore(
        self,
        pauses: Sequence[OperatorPause],
        *,
        actor: str,
        override: Override | None = None,
        bands: Bands | None = None,
    ) -> bool:
        with self._server.changed:
            content = self._server.content()
            if content.complete:
                return False
            names = []
            for pause in pauses:
                if self._covering(pause.name, pause.partition) is None:
                    self._add(pause)
                    names.append(_word(pause.name, pause.partition))
            if override is not None and content.override is None:
                self._put_override(override)
                if self._override_left(override) > 0:
                    names.append("override")
                else:
                    content.override = None
            if bands is not None and content.bands is None:
                content.bands = bands
                names.append("bands")
            content.complete = True
            data = {"reasons": " ".join(names)}
            self._record(ControlEventKind.STATE_RESTORED, actor, "the control store was empty", data)
            self._settle_rate(actor, "the reasons to pause were restored")
            return True

    def _covering(self, name: str, partition: int | None) -> Pause | None:
        """The pause of this reason that includes this partition (None: the whole system)."""
        held = self._server.content().pauses
        return held.get((name, None)) or held.get((name, partition))

    def _add(self, asked: OperatorPause) -> int:
        content, partition = self._server.content(), asked.partition
        if partition is None:
            for other in [key for key in content.pauses if key[0] == asked.name]:
                del content.pauses[other]
        content.generation += 1
        actor, why = clean_text(asked.actor, BY_CHARS_MAX), clean_text(asked.why, WHY_CHARS_MAX)
        content.pauses[asked.name, partition] = Pause(
            asked.reason, content.generation, asked.since, actor, why, partition, asked.word
        )
        return content.generation


def _word(name: str, partition: int | None) -> str:
    return name if partition is None else f"{name}:{partition}"


def _of_partition(partition: int | None) -> dict[str, str]:
    return {} if partition is None else {"partition": str(partition)}


def _breaker_holds(content: _Content) -> bool:
    return (PauseReason.BREAKER.value, None) in content.pauses


def _is_stale(lag_known_at: float | None, last: PublishedRate, now: float) -> bool:
    if lag_known_at is None or last.lag_known_at is None:
        return False
    return lag_known_at < last.lag_known_at <= now


def _next_version(last: PublishedRate | None, now: float) -> int:
    return max((last.version if last is not None else 0) + 1, int(now * 1000))


def _effective(content: _Content, base_rate: float) -> float:
    wanted = base_rate if content.override is None else content.override.rate
    return capped_by_breaker(wanted, content.floor_rate, is_open=_breaker_holds(content))


def _decided_by(content: _Content, base_rate: float) -> str:
    wanted = base_rate if content.override is None else content.override.rate
    if _effective(content, base_rate) < wanted:
        return "breaker"
    return "lag" if content.override is None else "override"


class MemoryControlEvents(_Adapter):
    """The history of the control loop; see ControlEvents."""

    def last(self, count: int) -> list[ControlEvent]:
        with self._server.changed:
            return self._server.content().events[-count:]

    def wait(self, after: str, *, wait_seconds: float) -> str:
        with self._server.changed:
            after = after or self._newest("0")
            self._server.changed.wait_for(lambda: self._newest(after) > after, timeout=wait_seconds)
            return self._newest(after)

    def record(self, kind: ControlEventKind, *, actor: str, why: str, data: dict[str, str]) -> None:
        with self._server.changed:
            self._record(kind, actor, why, data)

    def _newest(self, default: str) -> str:
        events = self._server.content().events
        return max(default, events[-1].id) if events else default


class MemoryBucket(_Adapter):
    """One token bucket for all ingest processes; see Bucket."""

    def __init__(self, settings: Settings, server: MemoryServer) -> None:
        super().__init__(settings, server)
        self._decay = Decay.from_settings(settings)
        self._last_rate = settings.rate_min
        self._last_version = 0

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0, level: Level = LEVEL_HIGHEST) -> Grant:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.monotonic()
            rate, version = self._rate(content, now)
            burst = bucket_flow.burst_of(rate, self._settings.burst_seconds)
            taken = bucket_flow.take(
                content.bucket,
                now=now,
                rate=rate,
                burst=burst,
                needed=needed,
                wanted=wanted,
                returned=returned,
                level=level,
                lowest_rate=lowest_since(content.low_rates, content.bucket_version),
            )
            content.bucket, content.bucket_version = taken.state, version
            content.ran_dry += taken.ran_dry
            content.processes[process] = now
            for name, seen_at in list(content.processes.items()):
                if seen_at <= now - PROCESS_SECONDS_MAX:
                    del content.processes[name]
            self._last_rate, self._last_version = rate, version
            return Grant(
                granted=taken.granted,
                wait_seconds=taken.wait_seconds,
                tokens=taken.state.tokens,
                rate=rate,
                burst=burst,
                version=version,
                live_processes=len(content.processes),
                deferred=taken.state.deferred,
                deferred_by=taken.state.deferred_by,
            )

    def _rate(self, content: _Content, now: float) -> tuple[float, int]:
        """The published rate, decayed if the controller is silent; after a flush the last one."""
        published = content.rate
        if published is None:
            rate = capped_by_breaker(self._last_rate, self._settings.rate_min, is_open=_breaker_holds(content))
            return rate, self._last_version
        if content.override is not None:
            if self._override_left(content.override) > 0:
                return published.rate, published.version
            # The next process that writes ends it, under a newer version.
            effective = capped_by_breaker(published.base_rate, content.floor_rate, is_open=_breaker_holds(content))
            published = replace(published, rate=effective, version=published.version + 1)
        known_at = published.published_at if published.lag_known_at is None else published.lag_known_at
        decided_after = published.published_at - known_at
        rate = self._decay.rate(
            published.rate,
            decided_after + now - content.rate_at,
            floor=min(published.rate, content.floor_rate),
            decided_after_seconds=decided_after,
        )
        return rate, published.version


class MemoryOffsetFence(_Adapter):
    """The mirror of the stored offsets; see OffsetFence."""

    def mirror(self, log_id: str) -> Mirror:
        with self._server.changed:
            held = self._of(log_id)
            return Mirror(held.life, dict(held.offsets), held.is_complete)

    def fence(self, log_id: str, incarnation: str) -> Mirror:
        with self._server.changed:
            self._of(log_id).incarnation = incarnation
            return self.mirror(log_id)

    def seed(self, log_id: str, life: str, lowest_offsets: dict[int, int]) -> None:
        with self._server.changed:
            mirror = self._of(log_id)
            if mirror.life != life:
                return
            for partition, offset in lowest_offsets.items():
                mirror.offsets[partition] = max(offset, mirror.offsets.get(partition, offset))
            mirror.is_complete = True

    def raise_lowest_offset(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
        with self._server.changed:
            held = self._of(log_id)
            if held.incarnation != incarnation:
                raise FencedError
            held.offsets[partition] = max(offset, held.offsets.get(partition, offset))

    def lower_lowest_offset(self, log_id: str, partition: int, offset: int) -> None:
        with self._server.changed:
            offsets = self._of(log_id).offsets
            if offsets.get(partition, offset) > offset:
                offsets[partition] = offset

    def _of(self, log_id: str) -> _LowestOffsets:
        """A log's lowest offsets, without the fence and completeness of an earlier life of the server."""
        process = self._server.process
        held = self._server.content().lowest_offsets.setdefault(log_id, _LowestOffsets(""))
        if not held.life.startswith(process):
            held.life = f"{process}:{uuid.uuid4().hex}"
            held.incarnation, held.is_complete = None, False
        return held


class MemoryLeases(_Adapter):
    """Claims that expire; see Leases."""

    def take(self, name: str, *, seconds: float) -> str | None:
        with self._server.changed:
            leases, now = self._server.content().leases, self._server.clock.monotonic()
            if name in leases and leases[name][1] > now:
                return None
            token = uuid.uuid4().hex
            leases[name] = (token, now + seconds)
            return token

    def give_back(self, name: str, token: str) -> None:
        with self._server.changed:
            leases = self._server.content().leases
            if leases.get(name, ("", 0.0))[0] == token:
                del leases[name]


class MemoryProgress(_Adapter):
    """How long each partition has had the same offset; see Progress."""

    def note(self, log_id: str, offsets: Mapping[int, int], *, forget_seconds: float) -> dict[int, float]:
        with self._server.changed:
            progress, now = self._server.content().progress, self._server.clock.monotonic()
            expires_at, noted = progress.get(log_id, (0.0, {}))
            if expires_at <= now:
                noted = {}
            standing = {}
            for partition, offset in offsets.items():
                noted_offset, since = noted.get(partition, (None, now))
                standing[partition] = (offset, since if noted_offset == offset and since <= now else now)
            progress[log_id] = (now + forget_seconds, standing)
            return {partition: now - since for partition, (_, since) in standing.items()}


class MemoryOffers(_Adapter):
    """What is offered to each ingest process; see Offers."""

    def report(self, process: str, offered: Offered) -> None:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.monotonic()
            content.offers[process] = (now, offered)
            for name, (at, _) in list(content.offers.items()):
                if now - at > REPORT_SECONDS_MAX:
                    del content.offers[name]

    def reported(self) -> Sequence[Offered]:
        with self._server.changed:
            now = self._server.clock.monotonic()
            return [offered for at, offered in self._server.content().offers.values() if now - at <= REPORT_SECONDS_MAX]


class MemoryKeyMirror(_Adapter):
    """The mirror of the API keys; see KeyMirror."""

    def load(self) -> MirroredKeys | None:
        with self._server.changed:
            return self._server.content().keys

    def replace(self, keys: Sequence[ApiKey], stored_version: str, *, instead_of: str | None) -> bool:
        with self._server.changed:
            content = self._server.content()
            if (None if content.keys is None else content.keys.version) != instead_of:
                return False
            ordered = tuple(sorted(keys, key=lambda key: key.id))
            content.keys = MirroredKeys(mirrored_version(stored_version), ordered)
            return True

    def revoke(self, ids: Sequence[str]) -> bool:
        with self._server.changed:
            content = self._server.content()
            held = content.keys
            if held is None:
                return False
            stored, _, count = held.version.rpartition(".")
            left = tuple(key for key in held.keys if key.id not in ids)
            revoked = tuple(sorted({*held.revoked, *ids}))
            content.keys = MirroredKeys(f"{stored}.{int(count) + 1}", left, revoked)
            return True


class MemoryThrottle(_Adapter):
    """What ingest processes refused, by account; see Throttle."""

    def report(self, process: str, slices: Mapping[int, Refusals]) -> None:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.monotonic()
            content.throttle |= {(process, number % SLICES_MAX): (now, one) for number, one in slices.items()}
            for key, (at, _) in list(content.throttle.items()):
                if now - at > WINDOW_SECONDS:
                    del content.throttle[key]

    def reported(self) -> Refusals:
        with self._server.changed:
            now = self._server.clock.monotonic()
            found = [one for at, one in self._server.content().throttle.values() if now - at <= WINDOW_SECONDS]
        return together(found, accounts_max=self._settings.accounts_max)


class MemoryTroubles(_Adapter):
    """Problems that processes find in themselves; see Troubles."""

    def report(self, process: str, problems: Sequence[Trouble]) -> None:
        with self._server.changed:
            content = self._server.content()
            content.troubles.pop(process, None)
            if problems:
                content.troubles[process] = [bounded_trouble(problem) for problem in problems]
                content.troubles_at[process] = self._server.clock.now()

    def reported(self) -> dict[str, list[Trouble]]:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.now()
            held = content.troubles.items()
            content.troubles = {one: it for one, it in held if 0 <= now - content.troubles_at[one] < TROUBLE_SECONDS}
            return dict(content.troubles)
