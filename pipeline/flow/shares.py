"""Max-min shares: while accounts offer more than the rate, each gets what it offers, up to one share f for all.

    sum of min(offered, f * weight) over all accounts = rate

So an account that offers less than its share gets all of it, and the others divide the rest by their weights. This is
the progressive filling of networks (Bertsekas and Gallager, Data Networks, 6.5.2).

The offers are measurements of the last seconds, so the admitted events miss the rate by a few percent. The bucket is
the integral of that error. So a part of the rate is added or taken away until a part of the bucket, the target, is
full:

    rate + (fill - target) * burst / settle_seconds

Above it, the rate would be lost in a full bucket. At an empty one, all accounts would be refused alike.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

# While less than this part of the rate is offered, no account has a share: there is no shortage. It is below 1 so that
# shares do not come and go with each client that waits for its Retry-After.
SHORT_FROM: Final = 0.9
# The part of the bucket that the shares keep full. With levels, it is above the largest reserve (0.6): otherwise no
# event of the lowest level would pass.
FILL_TARGET: Final = 0.5
FILL_TARGET_OF_LEVELS: Final = 0.8
# The measured offers have this delay, and a published share reaches a process after this time.
DELAY_SECONDS: Final = 2.0
# Of an account's share: accounts that offer less are not published, since nothing holds them back.
PUBLISHED_FROM: Final = 0.8


@dataclass(frozen=True, slots=True)
class Offered:
    """What was offered to one ingest process in the last seconds, in events/s."""

    accounts: Mapping[str, float]  # the heaviest accounts
    rest: float = 0.0  # all other accounts together
    # The most that one of the others may offer; 0 if there is none.
    rest_max: float = 0.0
    fill: float | None = None  # of the bucket, as a part of a full one; None: unknown


@dataclass(frozen=True, slots=True)
class Shares:
    """The published shares. `share` is f, for an account of weight 1, in events/s; None: there is no shortage."""

    share: float | None = None
    rate: float = 0.0  # events/s that were divided
    # Events/s that were offered to all processes by each account that has a limit, or is near its share. A process
    # gives an account the same part of its share that it has of these.
    offered: Mapping[str, float] = field(default_factory=dict)

    def limits_only(self, limits: Mapping[str, float]) -> "Shares":
        """The same without a share, for accounts with a hard limit."""
        return Shares(None, self.rate, {account: rate for account, rate in self.offered.items() if account in limits})


def together(reports: Iterable[Offered]) -> Offered:
    """What was offered to all processes. The fill is the mean of those that are known."""
    accounts: dict[str, float] = {}
    rest = rest_max = 0.0
    fills = []
    for report in reports:
        for account, offered in report.accounts.items():
            accounts[account] = accounts.get(account, 0.0) + offered
        rest += report.rest
        rest_max += report.rest_max
        if report.fill is not None:
            fills.append(report.fill)
    return Offered(accounts, rest, rest_max, sum(fills) / len(fills) if fills else None)


def fair_share(demands: Iterable[tuple[float, float]], supply: float) -> float:
    """The share f for which the sum of min(demand, f * weight) over `demands` (demand, weight) is `supply`.

    If the demands are less than the supply, it is the share up to which one account may use what is left; infinite if
    there are no demands.
    """
    by_ratio = sorted((demand / weight, demand, weight) for demand, weight in demands)
    weights = [*accumulate(weight for _, _, weight in reversed(by_ratio))]  # of an account and all after it
    left = supply
    share = float("inf")
    for ratio, demand, _ in by_ratio:
        share = max(0.0, left) / weights.pop()
        if share < ratio:
            return share
        left -= demand
    return share


def share_out(
    offered: Offered,
    *,
    rate: float,
    burst_seconds: float,
    period_seconds: float,
    weights: Mapping[str, float],
    limits: Mapping[str, float],
    has_levels: bool = False,
) -> Shares:
    """The shares to publish for what is offered, `rate` in events/s, and the time between two publications.

    An account that no process counts by itself can't be held back. So the share is at least the most that such an
    account may offer. `weights` are those that differ from 1, `limits` are the hard limits in events/s.
    """
    demands = {
        account: (min(events, limits.get(account, events)), weights.get(account, 1.0))
        for account, events in offered.accounts.items()
    }
    limited = {account: events for account, events in offered.accounts.items() if account in limits}
    total = sum(demand for demand, _ in demands.values()) + offered.rest
    if rate <= 0 or total < SHORT_FROM * rate:
        return Shares(None, rate, limited)
    settle_seconds = period_seconds + DELAY_SECONDS
    target = FILL_TARGET_OF_LEVELS if has_levels else FILL_TARGET
    beyond = 0.0 if offered.fill is None else min(1.0, max(-1.0, offered.fill)) - target
    supply = rate * (1 + beyond * burst_seconds / max(settle_seconds, 2 * burst_seconds))
    share = max(fair_share(demands.values(), supply - offered.rest), offered.rest_max)
    if share == float("inf"):
        return Shares(None, rate, limited)
    held = {
        account: events
        for account, events in offered.accounts.items()
        if events >= PUBLISHED_FROM * share * weights.get(account, 1.0)
    }
    return Shares(share, rate, limited | held)
