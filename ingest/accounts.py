"""Accounts of one process: counts what each offers, and holds back those with a limit or above their share.

Once a second the counts become averages (`pipeline.flow.offered`), which this process reports. The controller shares
out the rate by the reports of all processes, and publishes the share up to which an account gets what it offers. Here
an account that offers more than that gets a token bucket, at its part of the share: share * own offer / offer to all
processes. All other accounts have none, so they cost one look.

- A new account is not held back until it was counted for a second. Only a hard limit holds at once: divided by the
  number of processes, until the controller has published what is offered to each.
- A share holds for RATE_HOLD_SECONDS after it was published, and falls and rises with the rate. After that no account
  has a share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from ingest.account_counter import AccountCounter, Hold
from ingest.client_address import ClientAddresses
from ingest.errors import RateLimitedError
from ingest.keys import KeyRing, KnownKey
from pipeline.account import account_of_certificate
from pipeline.clock import Clock
from pipeline.flow.offered import OfferedTable
from pipeline.flow.refusals import Refusals, RefusalTable
from pipeline.flow.shares import PUBLISHED_FROM, Offered, Shares
from pipeline.names import LEVEL_HIGHEST, Level, LimitedBy, ProtocolName
from pipeline.ports.control import AccountLimit, account_limits
from pipeline.settings import Settings

OTHERS: Final = "others"  # accounts beyond the number that this process can tell apart in one second
_FOLD_SECONDS_MIN: Final = 0.2  # a fold that follows sooner would take noise for a rate
# Tallies beside those of open connections: of accounts that have just left, or are counted by themselves.
_TALLIES_PER_ACCOUNT: Final = 8


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the other parts of this process know, for the parts of limits and shares."""

    rate: float  # events/s of all processes, now
    live_processes: int
    fill: float | None  # of the bucket, as a part of a full one


class Accounts:
    """The accounts of one process. For the event loop only."""

    def __init__(self, settings: Settings, clock: Clock, keys: KeyRing | None = None) -> None:
        self._settings = settings
        self.keys = keys  # None: writers need no API key (INGEST_KEYS)
        self._clock = clock
        self._addresses = ClientAddresses(settings)
        self._tallies: dict[str, AccountCounter] = {}
        self._tallies_max = settings.ingest_connections_max + _TALLIES_PER_ACCOUNT * settings.accounts_max
        self._others = AccountCounter(OTHERS)
        self._table = OfferedTable(settings.accounts_max)
        self._refusals = RefusalTable(settings.accounts_max)
        self._folded_at = clock.monotonic()
        self._limits: Mapping[str, AccountLimit] = account_limits(settings)
        self._shares: Shares | None = None
        self._shares_at = 0.0  # monotonic
        self._around = Surroundings(settings.rate_min, settings.ingest_processes_max, None)

    # --- Connections and decisions ------------------------------------------------------------------------------------

    def client(self, peer: str | None, certificate: str | None = None) -> "Client":
        """The client of a new connection; `certificate` is the name in one that TLS has verified."""
        return Client(self, self._addresses, peer, certificate)

    @property
    def certificate_is_key(self) -> bool:
        """Whether a client's certificate stands for an API key."""
        return self._settings.ingest_tls_client_as_key

    def enter(self, account: str) -> AccountCounter:
        """The tally of an account with one more connection."""
        tally = self._tallies.get(account)
        if tally is None:
            if len(self._tallies) >= self._tallies_max and account not in self._limits:
                return self._others
            tally = self._tallies[account] = AccountCounter(account)
            self._settle(tally, self._clock.monotonic())
        tally.connections += 1
        return tally

    def leave(self, tally: AccountCounter) -> None:
        """A connection of the account has ended. Its counts stay until the next fold."""
        tally.connections -= 1

    def wait_seconds(self, tally: AccountCounter) -> float:
        """Seconds until a body of the account may pass its limit; 0 if it may now."""
        hold = tally.hold
        return 0.0 if hold is None else hold.wait_seconds(self._clock.monotonic())

    def refusal(self, tally: AccountCounter, *, seconds_min: float = 0.0) -> RateLimitedError | None:
        """The rejection of any body of the account; None if one may pass its limit now.

        `seconds_min` is the time for which others would refuse it: the client should not return before that.
        """
        wait_seconds = self.wait_seconds(tally)
        if wait_seconds <= 0 or tally.hold is None:
            return None
        return _refusal(tally.hold, max(wait_seconds, seconds_min))

    def take(self, tally: AccountCounter, count: int) -> None:
        """Take a body's tokens from the limit of its account. Raises RateLimitedError."""
        hold = tally.hold
        if hold is not None:
            wait_seconds = hold.take(count, self._clock.monotonic())
            if wait_seconds > 0:
                raise _refusal(hold, wait_seconds)

    def give_back(self, tally: AccountCounter, count: int) -> None:
        """Give back a body's tokens: it was refused for another reason, or is certainly not stored."""
        if tally.hold is not None:
            tally.hold.give_back(count, self._clock.monotonic())

    # --- Once a second, and with each publication ---------------------------------------------------------------------

    def note(
        self, shares: Shares | None, limits: Mapping[str, AccountLimit], around: Surroundings, *, age_seconds: float
    ) -> None:
        """Take the limits, and what the controller published `age_seconds` ago."""
        now = self._clock.monotonic()
        self._limits, self._around = limits, around
        self._shares, self._shares_at = shares, now - age_seconds
        self._settle_all(now)

    def fold(self, around: Surroundings) -> Offered:
        """Make averages of the counts since the last call, and return the report of this process."""
        now = self._clock.monotonic()
        self._around = around
        seconds = now - self._folded_at
        if seconds >= _FOLD_SECONDS_MIN:
            self._folded_at = now
            # If the bucket was empty from the start, no body of some accounts was read: use the mean of the others.
            known = [tally.body_events for tally in self._tallies.values() if tally.body_events]
            body_events = fmean(known) if known else 1.0
            counts = {account: tally.take_offered(body_events) for account, tally in self._tallies.items()}
            self._table.fold(counts, seconds, others=self._others.take_offered(body_events))
            self._note_refused(now)
            self._forget()
            self._settle_all(now)
        return self._table.offered(around.fill)

    @property
    def is_reporting(self) -> bool:
        """Whether the controller needs the reports of this process."""
        return self._settings.admission_shares or any(limit.rate is not None for limit in self._limits.values())

    @property
    def held(self) -> int:
        """The number of accounts that are held back to a limit or a share."""
        tallies = list(self._tallies.values())  # at once: metrics are read on another thread
        return sum(tally.hold is not None for tally in tallies)

    @property
    def refused_unreported(self) -> dict[int, Refusals]:
        """The slices of refusals that were not reported since their last change; see RefusalTable."""
        return self._refusals.changed()

    def note_reported(self, slices: Mapping[int, Refusals]) -> None:
        """Note that these slices were reported."""
        self._refusals.note_reported(slices)

    def refused_here(self) -> Refusals:
        """What this process refused in the last minutes."""
        return self._refusals.window(self._clock.monotonic())

    def _note_refused(self, now: float) -> None:
        refused = {tally.account: tally.take_refused() for tally in self._tallies.values()}
        found = Refusals({account: one for account, one in refused.items() if one}, self._others.take_refused())
        if found.accounts or found.other:
            self._refusals.add(found, now)

    def _forget(self) -> None:
        """Drop the tallies of accounts that have no connection and offer next to nothing."""
        self._tallies = {
            account: tally
            for account, tally in self._tallies.items()
            if tally.connections > 0 or account in self._table
        }

    def _settle_all(self, now: float) -> None:
        for tally in self._tallies.values():
            self._settle(tally, now)

    def _settle(self, tally: AccountCounter, now: float) -> None:
        """Set, change or lift the limit of an account."""
        rate, local_rate = self._limit(tally.account, now)
        if local_rate == float("inf"):
            tally.hold = None
            return
        if tally.hold is None:
            tally.hold = Hold(self._clock.now())
        tally.hold.note_rate(rate, local_rate, burst_seconds=self._settings.burst_seconds, now=now)

    def _limit(self, account: str, now: float) -> tuple[float, float]:
        """Events/s of an account over all processes and in this one; infinite if nothing holds it back."""
        limit, shares, own = self._limits.get(account), self._shares, self._table.rate(account)
        rate = local_rate = float("inf")
        is_fresh = shares is not None and now - self._shares_at <= self._settings.rate_hold_seconds
        offered = shares.offered.get(account) if shares is not None and is_fresh else None
        if limit is not None and limit.rate is not None:
            part = 1 / self._around.live_processes if own is None or offered is None else own / max(own, offered)
            rate, local_rate = limit.rate, limit.rate * part
        if shares is None or shares.share is None or not is_fresh or own is None:
            return rate, local_rate
        share = shares.share * self._around.rate / shares.rate * (1.0 if limit is None else limit.weight)
        everywhere = max(own, offered or 0.0)
        if everywhere >= PUBLISHED_FROM * share and share * own / everywhere < local_rate:
            rate, local_rate = share, share * own / everywhere
        return rate, local_rate


class Client:
    """The client of one connection: finds the account of each of its requests.

    `tally` is that of all its requests. None: each request may have another account, by its API key, or because the
    peer is a trusted proxy.
    """

    __slots__ = (
        "_accounts", "_addresses", "_authorization", "_certified", "_forwarded", "_key", "_keys", "_keys_version",
        "_of_request", "_peer", "_plain", "tally",
    )  # fmt: skip

    def __init__(
        self, accounts: Accounts, addresses: ClientAddresses, peer: str | None, certificate: str | None = None
    ) -> None:
        self._accounts = accounts
        self._addresses = addresses
        self._peer = peer
        self._of_request: AccountCounter | None = None  # the account of the last request
        self._forwarded: str | None = None  # of the last request
        self._keys = accounts.keys
        # The key of the last request with a valid one, and the fields that had it.
        self._key: KnownKey | None = None
        self._keys_version = 0
        self._plain: str | None = None
        self._authorization: str | None = None
        is_proxy = addresses.is_proxy(peer)
        # The certificate of a trusted proxy is not that of its clients.
        own = None if certificate is None or is_proxy else account_of_certificate(certificate)
        is_one = self._keys is None and not is_proxy
        self.tally = accounts.enter(own or addresses.account(peer)) if is_one else None
        # What stands for the key of a request without one.
        self._certified = None if own is None or not accounts.certificate_is_key else KnownKey(own, None, None)

    @property
    def field(self) -> str:
        """The header field that names the client behind a trusted proxy."""
        return self._addresses.field

    @property
    def has_keys(self) -> bool:
        """Whether the account of a request is that of its API key."""
        return self._keys is not None

    @property
    def level_max(self) -> Level:
        """The highest level that the last request may have, by its API key."""
        return LEVEL_HIGHEST if self._key is None else self._key.level_max

    @property
    def recent(self) -> AccountCounter | None:
        """The account of the last request; None if that had no valid API key, or the keys have changed since then."""
        keys = self._keys
        is_old = keys is not None and (self._key is None or self._keys_version != keys.version)
        return None if is_old else self._of_request

    def tally_of(self, forwarded: str) -> AccountCounter:
        """The tally of a request without keys; `forwarded` is the value of `field`, all of its lines together."""
        if self.tally is not None:
            return self.tally
        found = self._of_request
        if found is None or forwarded != self._forwarded:
            found = self._enter(self._addresses.account(self._peer, forwarded))
            self._forwarded = forwarded
        return found

    def tally_of_key(
        self, plain: str | None, authorization: str | None, protocol: ProtocolName | None
    ) -> AccountCounter:
        """The tally of a request with an API key, by its fields X-Api-Key and Authorization.

        Raises UnauthorizedError, ForbiddenError, KeysUnknownError.
        """
        keys, key, found = self._keys, self._key, self._of_request
        if keys is None:
            raise RuntimeError("there are no API keys")
        if (
            key is None
            or found is None
            or self._keys_version != keys.version
            or plain != self._plain
            or authorization != self._authorization
        ):
            self._key = None
            key = self._certified if plain is None and authorization is None else None
            key = key or keys.find(plain, authorization)
            if found is None or found.account != key.account:
                found = self._enter(key.account)
            self._key, self._keys_version = key, keys.version
            self._plain, self._authorization = plain, authorization
        if key.expires_at is not None or key.protocols is not None:
            self._key = None  # if it is refused, `recent` is None: so the next request is refused early
            keys.check(key, protocol)
            self._key = key
        return found

    def close(self) -> None:
        """The connection has ended."""
        self._leave()
        if self.tally is not None:
            self._accounts.leave(self.tally)

    def _enter(self, account: str) -> AccountCounter:
        self._leave()
        found = self._of_request = self._accounts.enter(account)
        return found

    def _leave(self) -> None:
        if self._of_request is not None:
            self._accounts.leave(self._of_request)
            self._of_request = None


def _refusal(hold: Hold, wait_seconds: float) -> RateLimitedError:
    return RateLimitedError(wait_seconds, quota=hold.rate, left=0, limited_by=LimitedBy.SHARE, since=hold.since)
