"""The bounds of admission, checked at each grant and each admitted body. Every one of them is exact.

- The bucket: in any period, it grants at most the integral of the rate, one burst, and the debt of one body.
- A lease: an ingest process admits at most the events granted to it since a lower rate voided its lease, and gives back
  at most what it still has of them.
- Control: the policy's rate stays between RATE_MIN and RATE_MAX; the effective rate is at most RATE_MIN while the
  breaker is open; and an unknown lag raises no rate.

This file uses its own arithmetic, on nothing but the shipped code's inputs and outputs.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pipeline.names import LEVEL_HIGHEST, Level, PauseReason
from pipeline.ports.bucket import Bucket, Grant
from pipeline.ports.control import ControlState, PublishedRate
from pipeline.settings import Settings

_ROUNDING_TOKENS: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Violation:
    """A bound that did not hold."""

    at: float  # seconds since the run began
    bound: str
    what: str


@dataclass(slots=True)
class Violations:
    """The violations of one run; the first ones are kept."""

    began_at: float  # monotonic
    found: list[Violation] = field(default_factory=list)
    count: int = 0
    kept_max: int = 20

    def add(self, now: float, bound: str, what: str) -> None:
        """Record a violation."""
        self.count += 1
        if len(self.found) < self.kept_max:
            self.found.append(Violation(now - self.began_at, bound, what))


class BucketBound:
    """A reference level. The exact integral of the rate fills it, and each grant lowers it.

    The shipped bucket does not know when a rate changed between two reads, so it fills at the lower of the two. Its
    level can't be above this one. A grant that lowers this level below the debt of one body is over-admission.
    """

    def __init__(self, violations: Violations, *, body_max: int, now: float) -> None:
        self._violations = violations
        self._body_max = body_max
        self._level = float("inf")  # a new bucket is full
        self._rate = 0.0
        self._at = now
        # For the figure: granted minus the rate's integral, and the least value of this difference.
        self._ahead = 0.0
        self._least = 0.0
        self._is_lost = True  # no rate was published yet, or none since the store lost its content
        self._burst_max = 1
        self.used_max = 0.0  # over-admission as a share of what is allowed, at its worst

    def note_rate(self, rate: float, now: float) -> None:
        """The effective rate is `rate` from now on."""
        self._fill(now)
        self._rate, self._is_lost = rate, False

    def forget(self, now: float) -> None:
        """The store lost its content: the next bucket is new, and full."""
        self._fill(now)
        self._level = float("inf")
        self._ahead = self._least = 0.0
        self._is_lost = True

    def note_grant(self, grant: Grant, now: float, *, returned: int = 0) -> None:
        """The bucket took back `returned` tokens of earlier grants, and has granted tokens or none."""
        if self._is_lost:  # the bucket uses the last rate that the calling process has seen
            self._rate = max(self._rate, grant.rate)
        self._fill(now)
        self._level = min(float(grant.burst), self._level + returned)
        self._ahead -= returned
        self._least = min(self._least, self._ahead)
        self._burst_max = max(self._burst_max, grant.burst)
        if grant.granted == 0:
            return
        self._level -= grant.granted
        if self._level < -self._body_max - _ROUNDING_TOKENS:
            self._violations.add(
                now,
                "bucket",
                f"{grant.granted} tokens were granted, {-self._level - self._body_max:,.1f} more than the rate's "
                f"integral, a burst of {grant.burst} and a body of {self._body_max} allow",
            )
            self._level = float(-self._body_max)  # each excess is reported once
        self._ahead += grant.granted
        self.used_max = max(self.used_max, (self._ahead - self._least) / (self._burst_max + self._body_max))

    def _fill(self, now: float) -> None:
        filled = (now - self._at) * self._rate
        self._at = now
        self._level += filled
        self._ahead -= filled
        self._least = min(self._least, self._ahead)


@dataclass(slots=True)
class _Held:
    """Tokens of one grant that a process has not spent."""

    version: int  # of the rate under which they were granted
    left: int
    is_void_soon: bool = False


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process has of its grants, by its own account."""

    lease: int  # tokens that it may spend
    owed: int  # tokens that it will give back at its next call


class LeaseBound:
    """Tokens that were granted to one process and are neither spent nor void: never below 0.

    The oldest grants are spent first here. So a lower rate voids the least, and the bound is never too tight. A rate
    that falls without a new version voids nothing: it decays without publications, or the store has lost it.

    A process also loses tokens: those of a call that fails, or of a grant that is void when it arrives. So at each call
    the bound falls to what the process says that it holds, and never rises to it. Otherwise the tokens that were lost
    would allow it to give back too many later.
    """

    def __init__(self, violations: Violations, name: str) -> None:
        self._violations = violations
        self._name = name
        self._grants: deque[_Held] = deque()
        self._latest: Grant | None = None
        self._version = -1  # of the newest publication that has reached the process
        self._voided = 0  # tokens that a publication voided, and that the process may return to the bucket
        self.holdings: Callable[[], Holdings] = lambda: Holdings(0, 0)  # of the process

    def note_grant(self, grant: Grant) -> None:
        """The bucket has answered the process."""
        latest, self._latest = self._latest, grant
        if latest is not None and grant.version != latest.version and grant.rate < latest.rate:
            for held in self._grants:  # the answer voids them on arrival, before the next publication
                held.is_void_soon = True
        if grant.granted:
            self._grants.append(_Held(grant.version, grant.granted))

    def note_rate(self, version: int, rate: float) -> None:
        """A published rate has reached the process: it voids earlier grants under a higher rate."""
        if version <= self._version:
            return
        self._version = version
        latest = self._latest
        if latest is None:
            return
        falls = latest.version < version and rate < latest.rate
        before = sum(held.left for held in self._grants)
        self._grants = deque(
            held for held in self._grants if not held.is_void_soon and not (falls and held.version < version)
        )
        self._voided += before - sum(held.left for held in self._grants)

    def note_call(self, returned: int, now: float) -> None:
        """The process calls the bucket, and gives tokens back: those of void leases, and of its lease."""
        holdings = self.holdings()
        granted = sum(held.left for held in self._grants)
        said, known = holdings.lease + holdings.owed + returned, granted + self._voided
        if said > known:
            self._violations.add(
                now,
                "lease",
                f"{self._name} gives back {returned} tokens and keeps {holdings.lease + holdings.owed}, "
                f"{said - known} more than it can have",
            )
        self._drop(granted - holdings.lease)
        self._voided = holdings.owed

    def note_admitted(self, count: int, now: float) -> None:
        """The process has admitted a body."""
        missing = self._drop(count)
        if missing:
            what = f"{self._name} admitted {missing} tokens that were not granted, or are void"
            self._violations.add(now, "lease", what)

    def _drop(self, count: int) -> int:
        """Take the oldest tokens; returns how many are missing."""
        grants, count = self._grants, max(0, count)
        while count and grants:
            spent = min(count, grants[0].left)
            count -= spent
            grants[0].left -= spent
            if grants[0].left <= 0:
                grants.popleft()
        return count


class ControlBound:
    """The limits of every published rate, under any policy."""

    def __init__(self, violations: Violations, settings: Settings) -> None:
        self._violations = violations
        self._rate_min, self._rate_max = settings.rate_min, settings.rate_max
        self._last: PublishedRate | None = None

    def note_state(self, state: ControlState, now: float) -> None:
        """A rate was published."""
        rate, last = state.rate, self._last
        if rate is None:
            return
        self._last = rate
        if not self._rate_min <= rate.base_rate <= self._rate_max:
            limits = f"{self._rate_min:g} to {self._rate_max:g}"
            self._violations.add(now, "limits", f"the policy's rate {rate.base_rate:g} is not within {limits}")
        is_open = any(pause.reason is PauseReason.BREAKER for pause in state.pauses or ())
        if is_open and rate.rate > self._rate_min:
            self._violations.add(now, "breaker", f"the rate is {rate.rate:g} while the breaker is open")
        if rate.lag is None and last is not None and rate.base_rate > max(last.base_rate, self._rate_min):
            what = f"the lag is unknown, and the rate rose from {last.base_rate:g} to {rate.base_rate:g}"
            self._violations.add(now, "unknown lag", what)


class WatchedBucket:
    """The shipped bucket, as one process sees it; the bounds receive each grant. See `Bucket`."""

    def __init__(
        self,
        bucket: Bucket,
        bound: BucketBound,
        lease: LeaseBound,
        monotonic: Callable[[], float],
        on_version: Callable[[int], None],
    ) -> None:
        self._on_version = on_version
        self._bucket = bucket
        self._bound = bound
        self._lease = lease
        self._monotonic = monotonic

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0, level: Level = LEVEL_HIGHEST) -> Grant:
        self._lease.note_call(returned, self._monotonic())  # if it fails, the tokens are lost
        grant = self._bucket.take(needed=needed, wanted=wanted, process=process, returned=returned, level=level)
        now = self._monotonic()
        self._bound.note_grant(grant, now, returned=returned)
        self._lease.note_grant(grant)
        self._on_version(grant.version)
        return grant
