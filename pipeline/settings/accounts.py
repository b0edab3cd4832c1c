"""Accounts: how ingest tells clients apart, and their limits and shares of the rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from pipeline.account import account_named
from pipeline.settings.field import setting

# Of the limits (events/s) and weights of accounts: by the settings, and by operators.
ACCOUNT_FIGURE_MIN: Final = 0.01
ACCOUNT_RATE_MAX: Final = 10_000_000.0
ACCOUNT_WEIGHT_MAX: Final = 100.0


@dataclass(frozen=True, kw_only=True)
class AccountSettings:
    """Accounts of clients."""

    trusted_proxies: str = setting(
        "",
        "Addresses and networks of reverse proxies, with commas between, as in 10.0.0.5,192.168.1.0/24. Then the "
        "client's address is the last one in FORWARDED_FIELD that is not theirs, else the address of the connection",
        when="ingest runs behind a proxy: otherwise all clients of the proxy are one account",
    )
    forwarded_field: str = setting(
        "x-forwarded-for",
        "The header field to which these proxies add the address of their client. Any other field may be forged",
        choices=("x-forwarded-for", "forwarded"),
        when="the proxies set Forwarded (RFC 7239)",
    )

    admission_shares: bool = setting(
        False,
        "While clients offer more than the rate, divide it: each account gets what it offers, up to a share that is "
        "the same for all (max-min). Otherwise an account that sends more gets more",
        when="several clients share the system, and one that sends too much must not be at the expense of the others",
    )
    account_limits: str = setting(
        "",
        "Events/s that accounts are admitted at most, also without shortage and without shares: ADDRESS=NUMBER with "
        "commas between. An account is an IPv4 address, or a /64 network of IPv6",
        when="a client has a contract for a rate, or sends too much by mistake",
    )
    account_weights: str = setting(
        "",
        "The shares of accounts as a multiple of that of all others: ADDRESS=NUMBER with commas between, 0.01 to 100",
        when="one account is many clients, or is more important than the others",
    )
    account_limits_max: int = setting(
        200,
        "Accounts for which operators can set a limit while the system runs (`control set_account_limit`)",
        unit="accounts",
        low=1,
        high=10_000,
        when="more clients have a contract for a rate. Every process reads all of them once a second, 200 bytes each",
    )
    accounts_max: int = setting(
        128,
        "Accounts that one ingest process counts by themselves: the heaviest. All others are counted together, and are "
        "never held back to a share",
        unit="accounts",
        low=8,
        high=1000,
        when="more accounts than that are above their share at once; each costs 30 bytes a second of each process",
    )


def account_problems(settings: AccountSettings) -> Iterator[str]:
    """Addresses that are none, and numbers outside their limits."""
    try:
        networks_of(settings.trusted_proxies)
    except ValueError as error:
        yield f"TRUSTED_PROXIES: {error}"
    yield from _figure_problems("ACCOUNT_LIMITS", settings.account_limits, ACCOUNT_RATE_MAX)
    yield from _figure_problems("ACCOUNT_WEIGHTS", settings.account_weights, ACCOUNT_WEIGHT_MAX)


def _figure_problems(name: str, text: str, most: float) -> Iterator[str]:
    try:
        figures = figures_of(text)
    except ValueError as error:
        yield f"{name}: {error}"
        return
    for account, figure in figures.items():
        if not ACCOUNT_FIGURE_MIN <= figure <= most:
            yield f"{name}: {account}={figure:g} is not between {ACCOUNT_FIGURE_MIN:g} and {most:g}"


def networks_of(text: str) -> list[IPv4Network | IPv6Network]:
    """The networks of TRUSTED_PROXIES; an address is a network of one. Raises ValueError."""
    return [ip_network(part.strip()) for part in text.split(",") if part.strip()]


def figures_of(text: str) -> dict[str, float]:
    """The numbers of ACCOUNT_LIMITS or ACCOUNT_WEIGHTS, by account. Raises ValueError."""
    figures = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, number = part.rpartition("=")
        account = account_named(name)
        if account is None:
            raise ValueError(f"{part!r} does not begin with an address and =")
        try:
            figures[account] = float(number)
        except ValueError:
            raise ValueError(f"{part!r} does not end with a number") from None
    return figures
