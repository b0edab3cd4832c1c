"""Rate, reasons to pause and control events on Redis."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec

from pipeline.clock import Clock, SystemClock
from pipeline.control_store.common import (
    ALARMS_MAX,
    BY_CHARS_MAX,
    CALL_SECONDS_MAX,
    WHY_CHARS_MAX,
    account_limit_data,
    bounded_alarms,
    breaker_state,
    clean_text,
    rate_event_why,
    without_override,
)
from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.control_store.control_scripts import ControlScripts
from pipeline.control_store.redis_leases import LEASE_LIBRARY
from pipeline.errors import StoreUnavailableError
from pipeline.flow.age import Age
from pipeline.flow.shares import Shares
from pipeline.names import (
    KEY_ACCOUNTS,
    KEY_BUCKET,
    KEY_EVENTS,
    KEY_KEYS,
    KEY_LEASE,
    KEY_PAUSE,
    LEASE_PROBE,
    ControlEventKind,
    Mode,
    PauseReason,
    Severity,
    known_word,
)
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
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)

WAIT_EVENTS_MAX: Final = 100  # events skipped at once by a waiter; it reads the state, not the events

# Errors while reading a value that is missing or has another format; msgspec's are ValueErrors.
_UNREADABLE: Final = (KeyError, ValueError, TypeError, AttributeError)
_policy_decoder: Final = msgspec.json.Decoder(PolicyRecord)
_shares_decoder: Final = msgspec.json.Decoder(Shares)
_account_limit_decoder: Final = msgspec.json.Decoder(OperatorLimit)
_Found = TypeVar("_Found")
_Read = TypeVar("_Read")
_COUNT_DIGITS_MAX: Final = 15
_TIME_MAX: Final = 1e11  # seconds since 1970: the year 5138
_RESTORED: Final = "restored"  # field of the hashes of reasons and of accounts that marks them as complete


class RedisControlStore:
    """Shared control state on Redis; see ControlStore.

    Its weakness: the server may lose everything. PostgreSQL also keeps what operators set.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None, *, reads_keys: bool = True) -> None:
        """`reads_keys`: whether the state has the version of the API keys, which operators may not read."""
        self._connection = ControlConnection(settings)
        self._clock = clock or SystemClock()
        self._account_limits_max = settings.account_limits_max
        self._scripts = ControlScripts(settings, self._connection, self._clock)
        keys = self._scripts.keys
        self._state_keys = [*keys[:3], self._connection.key(KEY_LEASE, LEASE_PROBE), *keys[4:]]
        self._pause_keys = self._state_keys[1:4]
        self._accounts_key = self._connection.key(KEY_ACCOUNTS)
        self._events_key = self._connection.key(KEY_EVENTS)
        self._state_keys += [self._connection.key(KEY_BUCKET), self._accounts_key]
        if reads_keys:
            self._state_keys.append(self._connection.key(KEY_KEYS))
        self._last: tuple[list[Any], ControlState] | None = None  # the last response about the state, and what it says
        self._override_age = Age()  # age of the time that was last stored with the override

    def state(self) -> ControlState:
        return self._state_of(self._connection.run(load_script("state", LEASE_LIBRARY), self._state_keys, []))

    def state_after(self, position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        newest, answer = self._run_after(position, "state", self._state_keys, wait_seconds)
        return newest, None if answer is None else self._state_of(answer)

    def pause_state(self) -> PauseState:
        script = load_script("pause_state", LEASE_LIBRARY)
        return _pause_state_of(self._connection.run(script, self._pause_keys, []))

    def pause_state_after(self, position: str, *, wait_seconds: float) -> tuple[str, PauseState | None]:
        newest, answer = self._run_after(position, "pause_state", self._pause_keys, wait_seconds)
        return newest, None if answer is None else _pause_state_of(answer)

    def _run_after(self, position: str, name: str, keys: list[str], wait_seconds: float) -> tuple[str, Any]:
        """Wait for an event, then run a script that reads. Returns the position, and no answer after an event."""
        if not position:
            return _newest_position(self._connection, self._events_key), None
        waited, answer = self._connection.wait_and_run(
            _wait_command(self._events_key, position, wait_seconds),
            load_script(name, LEASE_LIBRARY),
            keys,
            wait_seconds=wait_seconds,
        )
        return (position, answer) if not waited else (_last_position(waited), None)

    def _state_of(self, answer: Any) -> ControlState:
        """The state from the response of its script."""
        rate, reasons, generation, probing, server_time, override, bands, ran_dry, accounts, *keys = answer
        last = self._last
        if last is not None and not override and last[0][:4] == answer[:4] and last[0][5:] == answer[5:]:
            return replace(last[1], time=_seconds(server_time))  # nothing else has changed since
        rate, time = _pairs(rate), _seconds(server_time)
        pauses, complete = _all_pauses(_pairs(reasons))
        published, floor_rate = _readable("rate", _rate_and_floor, rate) or (None, 0.0)
        held = _readable("override", lambda fields: self._override_now(fields, time), _pairs(override))
        if held is not None and held.until <= time:
            # The next write ends it for all processes; until then no process may use it.
            published = None if published is None else without_override(published, pauses, floor_rate)
            held = None
        state = ControlState(
            rate=published,
            pauses=pauses if complete else None,
            breaker=breaker_state(pauses, complete=complete, probing=bool(probing)),
            time=time,
            generation=int(generation or 0),
            floor_rate=floor_rate,
            override=held,
            bands=_readable("bands", _bands, _pairs(bands)),
            accounts=_account_limits(_pairs(accounts)),
            keys_version=keys[0] if keys else None,
            bucket_ran_dry=int(ran_dry or 0),
        )
        self._last = answer, state
        return state

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
        answer = self._run(
            "publish_rate",
            actor,
            repr(float(base_rate)),
            repr(float(floor_rate)),
            mode.value,
            "" if lag is None else str(lag),
            "" if lag_known_at is None else repr(float(lag_known_at)),
            rate_event_why(lag, policy),
            "" if consumption is None else _consumption_text(consumption),
            _alarms_text(bounded_alarms(alarms)),
            "" if policy is None else policy.explanation.reason,
            "" if policy is None else msgspec.json.encode(policy).decode(),
            repr(0.0 if policy is None else policy.explanation.event_ratio),
            "" if shares is None else msgspec.json.encode(shares).decode(),
        )
        published = _readable("rate", _published_rate, _pairs(answer))
        if published is None:
            raise StoreUnavailableError("the control store (Redis) holds a rate that this version can't read")
        return published

    def set_override(self, rate: float, *, until: float, actor: str, why: str) -> Override:
        actor, why = clean_text(actor, BY_CHARS_MAX), clean_text(why, WHY_CHARS_MAX)
        since = self._run("set_override", actor, repr(float(rate)), repr(float(until)), why)
        return Override(rate, until, actor, why, float(since))

    def clear_override(self, *, actor: str, why: str) -> bool:
        return bool(self._run("clear_override", actor, clean_text(why, WHY_CHARS_MAX)))

    def set_bands(self, bands: Bands) -> None:
        rate_max, rate_min, degraded, critical, actor, why, since = _bands_texts(bands)
        self._run("set_bands", actor, rate_max, rate_min, degraded, critical, why, since)

    def clear_bands(self, *, actor: str, why: str) -> bool:
        return bool(self._run("clear_bands", actor, clean_text(why, WHY_CHARS_MAX)))

    def set_account_limit(self, asked: OperatorLimit) -> bool:
        why, actor = clean_text(asked.why, WHY_CHARS_MAX), clean_text(asked.actor, BY_CHARS_MAX)
        entry = _account_limit_text(replace(asked, actor=actor, why=why))
        data = json.dumps(account_limit_data(asked))
        most = str(self._account_limits_max)
        return bool(self._run_on_accounts("set_account_limit", actor, asked.account, entry, most, why, data))

    def clear_account_limit(self, account: str, *, actor: str, why: str) -> bool:
        return bool(self._run_on_accounts("clear_account_limit", actor, account, clean_text(why, WHY_CHARS_MAX)))

    def restore_account_limits(self, asked: Sequence[OperatorLimit], *, actor: str) -> bool:
        arguments = [text for one in asked for text in (one.account, _account_limit_text(one))]
        return bool(self._run_on_accounts("restore_account_limits", actor, *arguments))

    def pause(self, reason: PauseReason, *, actor: str, why: str, partition: int | None = None) -> int:
        return int(self._run("pause", actor, reason.value, clean_text(why, WHY_CHARS_MAX), _text(partition)))

    def resume(
        self, reason: PauseReason, *, generation: int | None, actor: str, why: str, partition: int | None = None
    ) -> bool:
        why = clean_text(why, WHY_CHARS_MAX)
        names = self._unknown_names() if reason is PauseReason.UNKNOWN else [reason.value]
        lifted = [self._run("resume", actor, name, _text(generation), why, _text(partition)) for name in names]
        return any(lifted)

    def _unknown_names(self) -> list[str]:
        """The active reasons that this version does not know."""
        found: list[str] = self._connection.call("HKEYS", self._connection.key(KEY_PAUSE))
        return [name for name in found if name != _RESTORED and known_word(PauseReason, name) is PauseReason.UNKNOWN]

    def restore(
        self,
        pauses: Sequence[OperatorPause],
        *,
        actor: str,
        override: Override | None = None,
        bands: Bands | None = None,
    ) -> bool:
        arguments = _override_texts(override) if override is not None else [""] * 5
        arguments += _bands_texts(bands) if bands is not None else [""] * 7
        for pause in pauses:
            who, why = clean_text(pause.actor, BY_CHARS_MAX), clean_text(pause.why, WHY_CHARS_MAX)
            arguments += [pause.name, who, why, repr(pause.since), _text(pause.partition)]
        return bool(self._run("restore", actor, *arguments))

    def _run(self, name: str, actor: str, *arguments: str) -> Any:
        return self._scripts.run(name, actor, *arguments)

    def _run_on_accounts(self, name: str, actor: str, *arguments: str) -> Any:
        return self._scripts.run(name, actor, *arguments, more_keys=(self._accounts_key,))

    def _override_now(self, fields: dict[str, str], time: float) -> Override:
        """The override in the server's current time, even if that clock was stepped since its times were stored."""
        noted_at = float(fields.get("at", time))
        age = self._override_age.of(noted_at, time - noted_at, now=self._clock.monotonic())
        step = time - noted_at - age
        held = _override(fields)
        if abs(step) <= CALL_SECONDS_MAX:  # the duration of a call is not a step
            return held
        return replace(held, until=held.until + step, since=held.since + step)


class RedisControlEvents:
    """The history of the control loop in a bounded stream; see ControlEvents."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._scripts = ControlScripts(settings, self._connection)
        self._key = self._connection.key(KEY_EVENTS)

    def last(self, count: int) -> list[ControlEvent]:
        entries = self._connection.call("XREVRANGE", self._key, "+", "-", "COUNT", count)
        return [_control_event(*entry) for entry in reversed(entries)]

    def wait(self, after: str, *, wait_seconds: float) -> str:
        position = after or _newest_position(self._connection, self._key)
        command = _wait_command(self._key, position, wait_seconds)
        answer = self._connection.wait(*command, wait_seconds=wait_seconds)
        return _last_position(answer) if answer else position

    def record(self, kind: ControlEventKind, *, actor: str, why: str, data: dict[str, str]) -> None:
        self._scripts.run("record_event", actor, kind.value, clean_text(why, WHY_CHARS_MAX), json.dumps(data))


def _newest_position(connection: ControlConnection, key: str) -> str:
    entries = connection.call("XREVRANGE", key, "+", "-", "COUNT", 1)
    return str(entries[0][0]) if entries else "0-0"


def _wait_command(key: str, position: str, wait_seconds: float) -> tuple[str | int, ...]:
    block_ms = max(1, int(wait_seconds * 1000))  # 0 would mean no limit
    return "XREAD", "COUNT", WAIT_EVENTS_MAX, "BLOCK", block_ms, "STREAMS", key, position


def _last_position(answer: Any) -> str:
    """The position of the last event in a response to XREAD."""
    [[_, entries]] = answer
    return str(entries[-1][0])


def _pause_state_of(answer: Any) -> PauseState:
    """The pauses from the response of their script."""
    reasons, generation, probing, server_time = answer
    pauses, complete = _all_pauses(_pairs(reasons))
    return PauseState(
        pauses=pauses if complete else None,
        breaker=breaker_state(pauses, complete=complete, probing=bool(probing)),
        time=_seconds(server_time),
        generation=int(generation or 0),
    )


def _override_texts(override: Override) -> list[str]:
    """In the argument order of put_override in control_lib.lua."""
    actor, why = clean_text(override.actor, BY_CHARS_MAX), clean_text(override.why, WHY_CHARS_MAX)
    return [repr(float(override.rate)), repr(float(override.until)), actor, why, repr(float(override.since))]


def _override(fields: dict[str, str]) -> Override:
    return Override(float(fields["rate"]), float(fields["until"]), fields["by"], fields["why"], float(fields["since"]))


def _bands_texts(bands: Bands) -> list[str]:
    """In the argument order of put_bands in control_lib.lua."""
    return [
        repr(float(bands.rate_max)),
        repr(float(bands.rate_min)),
        str(int(bands.lag_degraded)),
        str(int(bands.lag_critical)),
        clean_text(bands.actor, BY_CHARS_MAX),
        clean_text(bands.why, WHY_CHARS_MAX),
        repr(float(bands.since)),
    ]


def _bands(fields: dict[str, str]) -> Bands:
    return Bands(
        rate_max=float(fields["rate_max"]),
        rate_min=float(fields["rate_min"]),
        lag_degraded=int(fields["lag_degraded"]),
        lag_critical=int(fields["lag_critical"]),
        actor=fields["by"],
        why=fields["why"],
        since=float(fields["since"]),
    )


def _account_limit_text(asked: OperatorLimit) -> str:
    return msgspec.json.encode(asked).decode()


def _account_limits(entries: dict[str, str]) -> dict[str, OperatorLimit] | None:
    """What operators set for accounts, without entries that this version can't read; None if it is unknown."""
    if entries.pop(_RESTORED, None) is None:
        return None
    found = [_readable("limit of an account", _account_limit_decoder.decode, text) for text in entries.values()]
    return {one.account: one for one in found if one is not None}


def _consumption_text(consumption: Consumption) -> str:
    return json.dumps(
        {
            "lag": {str(partition): lag for partition, lag in consumption.lag_by_partition.items()},
            "consumed": consumption.consumed,
            "drain_rate": consumption.drain_rate,
            "no_progress": consumption.no_progress_seconds,
            "held": {str(partition): lag for partition, lag in consumption.lag_held.items()},
        }
    )


def _consumption(text: str) -> Consumption:
    fields = json.loads(text)
    lag = {int(partition): int(lag) for partition, lag in fields["lag"].items()}
    held = {int(partition): int(events) for partition, events in fields.get("held", {}).items()}
    stood = fields.get("no_progress")
    return Consumption(
        lag,
        int(fields["consumed"]),
        fields["drain_rate"],
        None if stood is None else {int(partition): float(seconds) for partition, seconds in stood.items()},
        held,
    )


def _alarms_text(alarms: Sequence[Alarm]) -> str:
    return json.dumps([[alarm.code, alarm.severity, alarm.what, alarm.look_at, alarm.partition] for alarm in alarms])


def _alarms(text: str) -> tuple[Alarm, ...]:
    """The alarms of a tick, including those of a newer version: fields that this version does not know are dropped."""
    return tuple(
        Alarm(_encodable(code), _severity(severity), _encodable(what), _encodable(look_at), partition)
        for code, severity, what, look_at, partition, *_ in json.loads(text)[:ALARMS_MAX]
    )


def _severity(word: str) -> Severity:
    """A severity of a newer version counts as critical: it must not be shown as less severe than meant."""
    try:
        return Severity(word)
    except ValueError:
        return Severity.CRITICAL


def _readable(what: str, read: Callable[[_Found], _Read], found: _Found) -> _Read | None:
    """The parsed value; None if it is missing, or if another version wrote it in a format that this one can't read."""
    try:
        return read(found) if found else None
    except _UNREADABLE as error:
        _logger.warning(
            "the control store's %s is of another version and can't be read: %r", what, error,
            extra={"action": "control_unreadable"},
        )  # fmt: skip
        return None


def _pairs(flat: list[str]) -> dict[str, str]:
    """A hash in the format of scripts: field, value, field, value."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _published_rate(fields: dict[str, str]) -> PublishedRate:
    return PublishedRate(
        version=int(fields["version"]),
        rate=float(fields["rate"]),
        base_rate=float(fields["base_rate"]),
        mode=known_word(Mode, fields["mode"]),
        lag=int(fields["lag"]) if fields["lag"] else None,
        published_at=float(fields["published_at"]),
        lag_known_at=float(fields["lag_known_at"]) if fields["lag_known_at"] else None,
        consumption=_readable("consumption", _consumption, fields.get("consumption", "")),
        # A controller of an older version publishes no alarms, and leaves those of an earlier tick in the hash.
        alarms=(_readable("alarms", _alarms, fields.get("alarms", "")) or ())
        if fields.get("alarms_at") == fields["published_at"]
        else (),
        policy=_policy(fields["policy"]) if fields.get("policy_at") == fields["published_at"] else None,
        shares=_shares(fields["shares"]) if fields.get("shares_at") == fields["published_at"] else None,
    )


def _rate_and_floor(fields: dict[str, str]) -> tuple[PublishedRate, float]:
    """The published rate, and the lowest rate of its policy."""
    return _published_rate(fields), float(fields["floor_rate"])


def _policy(text: str) -> PolicyRecord | None:
    """The policy's record. Without one that this version can read, the rate itself still counts."""
    return _readable("policy", _policy_decoder.decode, text)


def _shares(text: str) -> Shares | None:
    return _readable("shares", _shares_decoder.decode, text)


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _seconds(server_time: list[str]) -> float:
    """The response to TIME, in seconds since the epoch."""
    return int(server_time[0]) + int(server_time[1]) / 1e6


def _all_pauses(reasons: dict[str, str]) -> tuple[tuple[Pause, ...], bool]:
    """The pauses, oldest first, and whether they are complete."""
    complete = reasons.pop(_RESTORED, None) is not None
    return tuple(sorted(_pauses(reasons), key=lambda pause: pause.generation)), complete


def _pauses(reasons: dict[str, str]) -> Iterator[Pause]:
    """All pauses; one that can't be read counts for the whole system."""
    for name, text in reasons.items():
        reason = known_word(PauseReason, name)
        word = name if reason is PauseReason.UNKNOWN else ""
        try:
            yield from [replace(pause, reason=reason, word=word) for pause in _pauses_in(json.loads(text))]
        except _UNREADABLE:
            yield Pause(reason, 0, 0.0, "unknown", f"this version can't read why: {text[:100]}", word=word)


def _pauses_in(entry: dict[str, Any]) -> list[Pause]:
    """The pauses in one entry. Without partitions (all entries of older versions) it is for the whole system."""
    by_partition = entry.get("partitions", {"": entry})
    return [
        Pause(
            PauseReason.UNKNOWN,
            int(fields["generation"]),
            float(fields["since"]),
            _encodable(fields["by"]),
            _encodable(fields["why"]),
            int(partition) if partition else None,
        )
        for partition, fields in by_partition.items()
    ]


def _control_event(position: str, fields: dict[str, str]) -> ControlEvent:
    word = fields.get("kind", "")
    kind, data = known_word(ControlEventKind, word), _readable("event", json.loads, fields.get("data", "{}"))
    unknown = {"kind": word} if kind is ControlEventKind.UNKNOWN else {}
    return ControlEvent(
        id=position,
        at=int(position.partition("-")[0]) / 1000,  # the server's clock numbers the entries, in milliseconds
        kind=kind,
        actor=fields.get("by", ""),
        why=fields.get("why", ""),
        data={_encodable(name): _encodable(value) for name, value in data.items()} | unknown
        if isinstance(data, dict)
        else unknown,
        count=_count(fields.get("count", "")),
        first_at=_time(fields.get("first_at", "")),
    )


def _count(text: str) -> int:
    """How often an event happened; 1 if a process of another version wrote something else."""
    return max(1, int(text)) if text.isdecimal() and len(text) <= _COUNT_DIGITS_MAX else 1


def _encodable(value: Any) -> str:
    """A value of JSON as text. Half of a surrogate pair, which JSON may have, could not be encoded again."""
    return str(value).encode(errors="replace").decode()


def _time(text: str) -> float | None:
    """A time, in seconds; None if it is missing or no time that can be shown."""
    try:
        at = float(text)
    except ValueError:
        return None
    return at if 0 <= at < _TIME_MAX else None
