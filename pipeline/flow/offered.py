"""How much each account offers: the heaviest accounts, in bounded memory, as averages over the last seconds.

    count = count * d + offered      weight = weight * d + seconds      d = exp(-seconds / MEAN_SECONDS)
    events/s = count / weight

The weight is that of the whole table. So an account that has just come counts with too few events/s at first, and the
sum over all accounts is right at any time. After each second the accounts with the largest counts stay, `accounts_max`
of them; the others are counted together. (As in Space-Saving, Metwally et al. 2005, but a whole second is added exactly
before the smallest counts go.)

The bound: an account that offers at least 1 / `accounts_max` of all counts in the table, in one second, is counted by
itself from that second on. In steady state that is MEAN_SECONDS / `accounts_max` of what is offered to the process.
"""

import math
from collections.abc import Mapping
from typing import Final

from pipeline.flow.shares import Offered

MEAN_SECONDS: Final = 3.0
SECOND: Final = 1.0  # the table is folded once in this time
# A count below this is forgotten: the account has offered nothing for long.
_COUNT_MIN: Final = 0.05


class OfferedTable:
    """The averages of one process."""

    def __init__(self, accounts_max: int) -> None:
        self._accounts_max = accounts_max
        self._heaviest: dict[str, float] = {}  # counts
        self._all = 0.0  # the count of all accounts
        self._weight = 0.0  # seconds

    def fold(self, counts: Mapping[str, float], seconds: float, *, others: float = 0.0) -> None:
        """Add what the accounts offered in the last `seconds`, and what `others` offered that have no name."""
        kept = math.exp(-seconds / MEAN_SECONDS)
        self._weight = self._weight * kept + seconds
        self._all = self._all * kept + others + sum(counts.values())
        merged = {account: count * kept for account, count in self._heaviest.items()}
        for account, count in counts.items():
            merged[account] = merged.get(account, 0.0) + count
        heaviest = sorted(merged.items(), key=lambda item: -item[1])[: self._accounts_max]
        self._heaviest = {account: count for account, count in heaviest if count >= _COUNT_MIN}

    def __contains__(self, account: str) -> bool:
        return account in self._heaviest

    def rate(self, account: str) -> float | None:
        """Events/s that an account offers; None if it is not counted by itself."""
        count = self._heaviest.get(account)
        return None if count is None else count / self._weight

    def offered(self, fill: float | None) -> Offered:
        """The report of this process."""
        if not self._weight:
            return Offered({}, fill=fill)
        accounts = {account: count / self._weight for account, count in self._heaviest.items()}
        rest = max(0.0, self._all - sum(self._heaviest.values())) / self._weight
        # What one of the others offers in a second is less than the smallest count that stayed.
        smallest = min(self._heaviest.values(), default=0.0)
        is_full = len(accounts) == self._accounts_max
        return Offered(accounts, rest, min(rest, smallest / SECOND) if is_full else 0.0, fill)
