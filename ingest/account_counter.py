"""What one account offers to this process, and what holds it back. For the event loop only."""

import math

from pipeline.flow import bucket as bucket_flow
from pipeline.flow.bucket import TOLERANCE_TOKENS
from pipeline.flow.refusals import Refused
from pipeline.names import LimitedBy


class Hold:
    """The limit of an account that has a hard limit, or offers more than its share: a token bucket of this process.

    As in the bucket of all accounts, a body passes if there is one token, and may leave a debt. A bucket without levels
    is three lines. The states of `pipeline.flow.bucket` would be most of the cost of a decision about such an account.
    """

    __slots__ = ("_at", "_burst", "_tokens", "local_rate", "rate", "since")

    def __init__(self, since: float) -> None:
        self.since = since  # seconds since the epoch; only shown
        self.rate = 0.0  # events/s of the account, over all processes
        self.local_rate = 0.0  # events/s of it in this process
        self._burst = 1.0
        self._tokens = math.inf  # at `_at`: full, whatever the first burst
        self._at = 0.0  # monotonic

    def note_rate(self, rate: float, local_rate: float, *, burst_seconds: float, now: float) -> None:
        """Take new rates. The time since the last look counts at the lower of the two, as the rate fell at any time."""
        self._burst = float(bucket_flow.burst_of(local_rate, burst_seconds))
        self.local_rate = min(self.local_rate, local_rate)
        self._tokens, self._at = self.tokens(now), now
        self.rate, self.local_rate = rate, local_rate

    def tokens(self, now: float) -> float:
        """The tokens that it holds, negative while in debt. A clock that went backwards adds none."""
        return min(self._burst, self._tokens + max(0.0, now - self._at) * self.local_rate)

    def wait_seconds(self, now: float) -> float:
        """Seconds until a body may pass."""
        missing = 1 - self.tokens(now)
        return missing / self.local_rate if missing > TOLERANCE_TOKENS else 0.0

    def take(self, count: int, now: float) -> float:
        """Take the tokens of a body; returns 0, or the seconds until a body may pass."""
        self._tokens, self._at = self.tokens(now), now
        missing = 1 - self._tokens
        if missing > TOLERANCE_TOKENS:
            return missing / self.local_rate
        self._tokens -= count
        return 0.0

    def give_back(self, count: int, now: float) -> None:
        """Give back the tokens of a body that was refused for another reason, or is certainly not stored."""
        self._tokens, self._at = min(self._burst, self.tokens(now) + count), now


class AccountCounter:
    """The counts of one account since they were last read, and its limit (None: nothing holds it back)."""

    __slots__ = ("_refused", "account", "body_events", "connections", "hold", "offered", "unread")

    def __init__(self, account: str) -> None:
        self.account = account
        self.connections = 0
        self.offered = 0  # events of bodies that were read, admitted and refused
        self.unread = 0  # bodies that were refused unread
        self.body_events = 0  # of the newest body that was read; 0: none was read yet
        self.hold: Hold | None = None
        self._refused: dict[LimitedBy, list[int]] = {}  # bodies and their events

    def refuse(self, by: LimitedBy, events: int) -> None:
        """Count a body that was read and refused."""
        self.body_events = events
        counts = self._refused.setdefault(by, [0, 0])
        counts[0] += 1
        counts[1] += events

    def refuse_unread(self, by: LimitedBy) -> None:
        """Count a body that was refused unread."""
        self.unread += 1
        counts = self._refused.get(by)
        if counts is None:
            counts = self._refused[by] = [0, 0]
        counts[0] += 1
        counts[1] += self.body_events or 1

    def take_refused(self) -> dict[str, Refused]:
        """What was refused since the last call, by reason."""
        if not self._refused:
            return {}
        refused, self._refused = self._refused, {}
        return {by.value: Refused(*counts) for by, counts in refused.items()}

    def take_offered(self, body_events: float) -> float:
        """The events that were offered since the last call.

        A body that was refused unread counts as the newest one that was read; as `body_events` if none was.
        """
        offered = self.offered + self.unread * (self.body_events or body_events)
        self.offered = self.unread = 0
        return offered
