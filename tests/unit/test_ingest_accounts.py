"""The accounts of one process: what is counted, who is held back, and for how long. On a clock that the test moves."""

from typing import Any

import pytest

from ingest.account_counter import AccountCounter
from ingest.accounts import OTHERS, Accounts, Client, Surroundings
from ingest.errors import RateLimitedError, error_response
from pipeline.clock import ManualClock
from pipeline.flow.shares import Offered, Shares
from pipeline.names import LimitedBy
from pipeline.ports.control import AccountLimit, account_limits
from pipeline.settings import Settings

HEAVY, SMALL = "192.0.2.1", "198.51.100.1"
AROUND = Surroundings(rate=1500.0, live_processes=2, fill=0.5)


class Rig:
    def __init__(self, **changes: Any) -> None:
        self.settings = Settings(**{"admission_shares": True} | changes)
        self.clock = ManualClock()
        self.accounts = Accounts(self.settings, self.clock)

    def client(self, peer: str) -> Client:
        return self.accounts.client(peer)

    def tally(self, peer: str) -> AccountCounter:
        tally = self.client(peer).tally
        assert tally is not None
        return tally

    def second(self, **offered: int) -> Offered:
        """Let a second pass, in which these events are offered."""
        for account, count in offered.items():
            self.accounts._tallies[account].offered += count
        self.clock.advance(1.0)
        return self.accounts.fold(AROUND)

    def publish(
        self, shares: Shares | None, limits: dict[str, AccountLimit] | None = None, *, age_seconds: float = 0.0
    ) -> None:
        self.accounts.note(
            shares,
            account_limits(self.settings) if limits is None else limits,
            AROUND,
            age_seconds=age_seconds,
        )

    def admitted(self, tally: AccountCounter, count: int = 1, *, tries: int = 10_000) -> int:
        """How many events of an account pass its limit at this moment."""
        admitted = 0
        for _ in range(tries):
            try:
                self.accounts.take(tally, count)
            except RateLimitedError:
                break
            admitted += count
        return admitted


def test_an_account_above_the_level_is_held_to_its_part_of_it() -> None:
    # Given an account whose 5,000 events/s come to this process for three fifths
    rig = Rig()
    heavy, small = rig.tally(HEAVY), rig.tally(SMALL)
    for _ in range(3):
        report = rig.second(**{HEAVY: 3000, SMALL: 20})
    assert report.accounts == {HEAVY: pytest.approx(3000), SMALL: pytest.approx(20)}
    # When the controller publishes a level
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 5000.0}))
    # Then the account has 360 events/s here, with a burst of a second; the small one is not held back
    assert heavy.hold is not None
    assert heavy.hold.rate == pytest.approx(600.0)
    assert heavy.hold.local_rate == pytest.approx(360.0)
    assert rig.admitted(heavy) == 360
    assert small.hold is None
    assert rig.accounts.held == 1
    rig.clock.advance(0.5)
    assert rig.admitted(heavy) == 180


def test_a_limit_below_one_event_a_second_is_named_as_it_is() -> None:
    # Given an account that may send one event in five seconds
    rig = Rig(admission_shares=False, account_limits=f"{HEAVY}=0.2")
    rig.publish(None)
    heavy = rig.tally(HEAVY)
    rig.admitted(heavy)
    # When it sends more
    refusal = rig.accounts.refusal(heavy)
    # Then the refusal has that limit
    assert refusal is not None
    assert (refusal.limited_by, refusal.quota) == (LimitedBy.SHARE, 0.2)
    assert b'"limit":0.2,' in error_response(refusal).body


def test_a_refusal_names_the_share_and_a_wait_that_is_true() -> None:
    rig = Rig()
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(10.0, 1500.0, {HEAVY: 6000.0}))
    since = rig.clock.now()
    rig.accounts.take(heavy, 25)  # one body may leave a debt
    rig.clock.advance(1.0)
    refusal = rig.accounts.refusal(heavy)
    assert refusal is not None
    assert refusal.retry_after_seconds == pytest.approx((1 + 25 - 5 - 5) / 5)
    assert (refusal.limited_by, refusal.quota, refusal.since) == (LimitedBy.SHARE, 10, since)
    assert b'"limitedBy":"share","limit":10,"since":"' in error_response(refusal).body
    rig.clock.advance(refusal.retry_after_seconds)
    assert rig.accounts.refusal(heavy) is None
    rig.accounts.take(heavy, 25)


def test_an_account_that_appears_is_admitted_at_once() -> None:
    # Given shares, and an account that has another process' connections only
    rig = Rig()
    rig.tally(SMALL)
    for _ in range(20):
        rig.second(**{SMALL: 20})
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 5000.0}))
    # When it comes here, nothing holds it back before it was counted
    heavy = rig.tally(HEAVY)
    assert rig.accounts.held == 0
    # Then it is, at its part of all that it offers, which grows within seconds
    parts = []
    for _ in range(3):
        rig.second(**{HEAVY: 5000})
        assert heavy.hold is not None
        parts.append(heavy.hold.local_rate / 600.0)
    assert parts == [pytest.approx(0.28, abs=0.01), pytest.approx(0.49, abs=0.01), pytest.approx(0.63, abs=0.01)]
    # And one that the controller has not counted yet has the whole share here
    new = rig.tally("192.0.2.9")
    rig.second(**{HEAVY: 5000, "192.0.2.9": 5000})
    assert new.hold is not None
    assert new.hold.local_rate == pytest.approx(600.0)


def test_an_account_that_stops_is_forgotten_and_free_again() -> None:
    rig = Rig()
    client = rig.client(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 3000.0}))
    client.close()
    for _ in range(60):
        rig.second()
    assert HEAVY not in rig.accounts._tallies
    assert rig.tally(HEAVY).hold is None


def test_a_connection_that_ends_does_not_end_the_limit() -> None:
    """Otherwise a client that connects anew for each request would have a new burst each time."""
    rig = Rig()
    rig.tally(SMALL)
    client = rig.client(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 3000.0}))
    assert client.tally is not None
    rig.admitted(client.tally)
    client.close()
    assert rig.admitted(rig.tally(HEAVY)) == 0
    rig.client(HEAVY).close()
    rig.second(**{HEAVY: 3000})
    assert rig.admitted(rig.tally(HEAVY)) == pytest.approx(600, abs=1)


@pytest.mark.parametrize(("age_seconds", "is_held"), [(0.0, True), (29.0, True), (31.0, False)])
def test_a_level_holds_as_long_as_a_rate_of_a_silent_controller(age_seconds: float, is_held: bool) -> None:
    rig = Rig()
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 3000.0}), age_seconds=age_seconds)
    assert (heavy.hold is not None) == is_held


def test_without_publications_a_level_ends_by_itself() -> None:
    rig = Rig()
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 3000.0}))
    for _ in range(30):
        rig.second(**{HEAVY: 3000})
        assert heavy.hold is not None
    rig.second(**{HEAVY: 3000})
    assert heavy.hold is None


def test_a_level_follows_the_rate_at_once() -> None:
    """The breaker opens: the rate falls to a tenth before the controller shares it out anew."""
    rig = Rig()
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(600.0, 15_000.0, {HEAVY: 3000.0}))
    assert heavy.hold is not None
    assert heavy.hold.local_rate == pytest.approx(60.0)


def test_a_weight_scales_the_share() -> None:
    rig = Rig(account_weights=f"{HEAVY}=3")
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 3000.0}))
    assert heavy.hold is not None
    assert heavy.hold.rate == pytest.approx(1800.0)


def test_no_shortage_holds_nobody_back() -> None:
    rig = Rig()
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    for shares in (None, Shares(None, 1500.0, {})):
        rig.publish(shares)
        assert heavy.hold is None


def test_a_hard_limit_holds_from_the_first_request_and_without_shares() -> None:
    # Given a limit of 100 events/s, two processes, and no word of the controller yet
    rig = Rig(admission_shares=False, account_limits=f"{HEAVY}=100")
    rig.publish(None)
    heavy = rig.tally(HEAVY)
    # Then this process gives half of it
    assert heavy.hold is not None
    assert (heavy.hold.rate, heavy.hold.local_rate) == (100.0, 50.0)
    assert rig.accounts.is_reporting
    # When the controller says what is offered everywhere, its part counts
    rig.second(**{HEAVY: 90})
    rig.publish(Shares(None, 1500.0, {HEAVY: 300.0}))
    assert heavy.hold.local_rate == pytest.approx(30.0)
    # When the controller falls silent, the processes' number counts again
    rig.publish(Shares(None, 1500.0, {HEAVY: 300.0}), age_seconds=100.0)
    assert heavy.hold.local_rate == pytest.approx(50.0)


def test_the_lower_of_limit_and_share_holds() -> None:
    rig = Rig(account_limits=f"{HEAVY}=100")
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    rig.publish(Shares(600.0, 1500.0, {HEAVY: 3000.0}))
    assert heavy.hold is not None
    assert heavy.hold.rate == 100.0
    rig.publish(Shares(60.0, 1500.0, {HEAVY: 3000.0}))
    assert heavy.hold.rate == 60.0


def test_off_costs_no_report_and_no_limit() -> None:
    rig = Rig(admission_shares=False)
    heavy = rig.tally(HEAVY)
    rig.second(**{HEAVY: 3000})
    assert not rig.accounts.is_reporting
    assert heavy.hold is None


def test_a_body_that_was_refused_unread_counts_as_the_last_one_that_was_read() -> None:
    rig = Rig()
    heavy, small = rig.tally(HEAVY), rig.tally(SMALL)
    heavy.refuse_unread(LimitedBy.RATE)
    small.refuse_unread(LimitedBy.RATE)
    assert rig.second().accounts == {HEAVY: pytest.approx(1), SMALL: pytest.approx(1)}  # nothing was read yet
    rig = Rig()
    heavy, small = rig.tally(HEAVY), rig.tally(SMALL)
    heavy.body_events = 20
    for _ in range(2):
        heavy.refuse_unread(LimitedBy.RATE)
        small.refuse_unread(LimitedBy.RATE)
    # Then an account of which no body was read yet counts as the others
    assert rig.second(**{HEAVY: 5}).accounts == {HEAVY: pytest.approx(45), SMALL: pytest.approx(40)}


def test_the_number_of_accounts_is_bounded_and_limits_hold_beyond_it() -> None:
    rig = Rig(ingest_connections_max=10, accounts_max=8, account_limits=f"{HEAVY}=100")
    bound = 10 + 8 * 8
    for number in range(bound + 50):
        rig.client(f"10.0.{number // 250}.{number % 250}").close()
    assert len(rig.accounts._tallies) == bound
    assert rig.tally("203.0.113.1").account == OTHERS
    assert rig.tally(HEAVY).account == HEAVY
    rig.tally("203.0.113.1").offered += 30
    report = rig.second()
    assert report.rest == pytest.approx(30.0)
    assert list(rig.accounts._tallies) == [HEAVY]


def test_behind_a_proxy_each_request_has_its_account() -> None:
    rig = Rig(trusted_proxies="10.0.0.1")
    client = rig.client("10.0.0.1")
    assert client.tally is None
    one = client.tally_of("203.0.113.1")
    assert (one.account, one.connections) == ("203.0.113.1", 1)
    assert client.tally_of("203.0.113.1") is one
    other = client.tally_of("203.0.113.1, 203.0.113.2")
    assert (other.account, one.connections, other.connections) == ("203.0.113.2", 0, 1)
    client.close()
    assert other.connections == 0
    assert client.tally_of("").account == "10.0.0.1"


def test_without_a_proxy_the_field_is_not_looked_at() -> None:
    client = Rig().client("203.0.113.1")
    assert client.tally is not None
    assert client.tally_of("203.0.113.2") is client.tally
