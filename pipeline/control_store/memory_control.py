"""Control state and control events in memory."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.control_store.common import (
    BY_CHARS_MAX,
    CALL_SECONDS_MAX,
    WHY_CHARS_MAX,
    account_limit_data,
    bounded_alarms,
    breaker_state,
    clean_text,
    folded_data,
    rate_event_why,
    repeated_event,
    without_override,
)
from pipeline.control_store.memory_server import Content, MemoryAdapter
from pipeline.flow.rate import capped_by_breaker, with_low_rate
from pipeline.flow.shares import Shares
from pipeline.names import LEASE_PROBE, ControlEventKind, Mode, PauseReason
from pipeline.ports.control import (
    Alarm,
    Bands,
    Consumption,
    ControlEvent,
    ControlState,
    OperatorLimit,
    OperatorPause,
    Override,
    Pause,
    PauseState,
    PublishedRate,
)
from pipeline.ports.rate import PolicyRecord


class _ControlAdapter(MemoryAdapter):
    """An adapter that changes the control state, and records its changes."""

    _name = "memory"

    def _settle_override(self) -> None:
        """End an override whose time is up; the first caller does it."""
        content = self._server.content()
        if content.override is not None and self._server.override_left(content.override) <= 0:
            ended, content.override = content.override, None
            data = {"rate": repr(ended.rate)}
            self._record(ControlEventKind.OVERRIDE_ENDED, self._name, "its time was up", data)
            self._settle_rate(self._name, "the override ended")

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

    def _wait(self, after: str, wait_seconds: float) -> str:
        """Block until there is an event after a position ("" for now) or time is up; returns the newest position."""
        with self._server.changed:
            after = after or self._newest("0")
            self._server.changed.wait_for(lambda: self._newest(after) > after, timeout=wait_seconds)
            return self._newest(after)

    def _newest(self, default: str) -> str:
        events = self._server.content().events
        return max(default, events[-1].id) if events else default


class MemoryControlStore(_ControlAdapter):
    """Shared control state; see ControlStore."""

    def state(self) -> ControlState:
        with self._server.changed:
            content, now = self._server.content(), self._server.clock.now()
            pauses = tuple(sorted(content.pauses.values(), key=lambda pause: pause.generation))
            probing = content.leases.get(LEASE_PROBE, ("", 0.0))[1] > self._server.clock.monotonic()
            rate, override = content.rate, content.override
            if override is not None and self._server.override_left(override) <= 0:
                rate, override = None if rate is None else without_override(rate, pauses, content.floor_rate), None
            elif override is not None:
                step = now + self._server.override_left(override) - override.until
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
        return _pause_state(self.state())

    def state_after(self, position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        if not position:
            return self._wait("", 0.0), None
        newest = self._wait(position, wait_seconds)
        return newest, self.state() if newest == position else None

    def pause_state_after(self, position: str, *, wait_seconds: float) -> tuple[str, PauseState | None]:
        newest, state = self.state_after(position, wait_seconds=wait_seconds)
        return newest, None if state is None else _pause_state(state)

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
                if self._server.override_left(override) > 0:
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


class MemoryControlEvents(_ControlAdapter):
    """The history of the control loop; see ControlEvents."""

    def last(self, count: int) -> list[ControlEvent]:
        with self._server.changed:
            return self._server.content().events[-count:]

    def wait(self, after: str, *, wait_seconds: float) -> str:
        return self._wait(after, wait_seconds)

    def record(self, kind: ControlEventKind, *, actor: str, why: str, data: dict[str, str]) -> None:
        with self._server.changed:
            self._record(kind, actor, why, data)


def _pause_state(state: ControlState) -> PauseState:
    return PauseState(state.pauses, state.breaker, state.time, state.generation)


def _word(name: str, partition: int | None) -> str:
    return name if partition is None else f"{name}:{partition}"


def _of_partition(partition: int | None) -> dict[str, str]:
    return {} if partition is None else {"partition": str(partition)}


def _is_stale(lag_known_at: float | None, last: PublishedRate, now: float) -> bool:
    if lag_known_at is None or last.lag_known_at is None:
        return False
    return lag_known_at < last.lag_known_at <= now


def _next_version(last: PublishedRate | None, now: float) -> int:
    return max((last.version if last is not None else 0) + 1, int(now * 1000))


def _effective(content: Content, base_rate: float) -> float:
    wanted = base_rate if content.override is None else content.override.rate
    return capped_by_breaker(wanted, content.floor_rate, is_open=content.breaker_holds)


def _decided_by(content: Content, base_rate: float) -> str:
    wanted = base_rate if content.override is None else content.override.rate
    if _effective(content, base_rate) < wanted:
        return "breaker"
    return "lag" if content.override is None else "override"
