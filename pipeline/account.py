"""Accounts: whose events share the admitted rate, and how people name them.

The account of a request with an API key is `key:` and the name of the key; that of a connection with a client's
certificate `cert:` and the name in it. Without either, it is the address of its client. A client with IPv6 has a whole
/64 network of addresses, so the network is its account.
"""

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

UNKNOWN: Final = "unknown"  # the account of a connection without an address, such as a Unix socket
_V6_PREFIX_BITS: Final = 64
_KEY: Final = "key:"
KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CERTIFICATE: Final = "cert:"
# Of a URI such as spiffe://cluster/ns/shop/sa/web, a host name, or a common name.
CERTIFICATE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,126}")

Address = IPv4Address | IPv6Address


def account_of(address: Address) -> str:
    """The account of a client with this address."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address.packed, _V6_PREFIX_BITS), strict=False))


def account_of_key(name: str) -> str:
    """The account of requests with an API key of this name."""
    return f"{_KEY}{name}"


def account_of_certificate(name: str) -> str:
    """The account of connections with a client's certificate that has this name."""
    return f"{_CERTIFICATE}{name}"


def account_named(text: str) -> str | None:
    """The account that a person means; None if it is none.

    It is `key:NAME`, `cert:NAME`, an address, or the /64 network of one.
    """
    if text.startswith(_KEY):
        return text if KEY_NAME.fullmatch(text.removeprefix(_KEY)) else None
    if text.startswith(_CERTIFICATE):
        return text if CERTIFICATE_NAME.fullmatch(text.removeprefix(_CERTIFICATE)) else None
    host, slash, prefix = text.strip().partition("/")
    address = address_in(host)
    if address is None or (slash and (address.version == 4 or prefix != str(_V6_PREFIX_BITS))):
        return None
    return account_of(address)


def address_in(text: str) -> Address | None:
    """The address that a text is; None if it is none. An IPv4 address within IPv6 is the IPv4 address."""
    try:
        address = ip_address(text.partition("%")[0])  # without the zone of a link-local address
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address or name on which a server listens."""
    address = address_in(host)
    return host.lower() == "localhost" if address is None else address.is_loopback
