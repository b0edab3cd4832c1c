"""The account of a request without an API key: the address of its client. Pure.

Behind a reverse proxy the peer of every connection is the proxy. A proxy that TRUSTED_PROXIES names adds the address of
its own peer at the end of one header field. So the field is read from its end, as by nginx (real_ip_recursive) and
Caddy: the first address that is not a trusted proxy's is the client. Everything before it may be forged. Only the field
of FORWARDED_FIELD counts: a proxy that sets one of the two fields passes on the other one as the client sent it.
"""

import re
from collections.abc import Iterator
from typing import Final

from pipeline.account import UNKNOWN, Address, account_of, address_in
from pipeline.settings import Settings, networks_of

HOPS_MAX: Final = 32  # of one field; a longer chain is a forged one
_FORWARDED: Final = "forwarded"

# RFC 7239, 4. A field that a client began with an open quote does not match as a whole. No part gives back what it has
# matched (atomic groups), so the time grows with the length only.
_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = r'"(?>(?:[^"\\]|\\.)*)"'
_PAIR: Final = rf"{_WORD}=(?:{_WORD}|{_QUOTED})"
_ELEMENT: Final = rf"(?>(?:{_PAIR})?)(?>(?:[ \t]*+;[ \t]*+(?>(?:{_PAIR})?))*)"
_FIELD: Final = re.compile(rf"[ \t]*+{_ELEMENT}(?>(?:[ \t]*+,[ \t]*+{_ELEMENT})*)[ \t]*+")
_PIECE: Final = re.compile(rf"({_WORD})=({_WORD}|{_QUOTED})|,")
_WITH_PORT: Final = re.compile(r"\[([^\]]*)\](?::[^:]*)?|([^:]+):[^:]*")


class ClientAddresses:
    """Finds the account of a request by the settings of one process."""

    def __init__(self, settings: Settings) -> None:
        self._trusted = tuple(networks_of(settings.trusted_proxies))
        self.field = settings.forwarded_field  # the name of the field, in lower case

    def is_proxy(self, peer: str | None) -> bool:
        """Whether the peer of a connection is a trusted proxy: then the account is another one for each request."""
        address = address_in(peer or "")
        return address is not None and self._is_trusted(address)

    def account(self, peer: str | None, forwarded: str | None = None) -> str:
        """The account of a request from `peer`; `forwarded` is the value of the field, all of its lines together."""
        client = address_in(peer or "")
        if client is None:
            return UNKNOWN
        for hop in self._hops(forwarded or ""):
            if not self._is_trusted(client):
                break
            address = _hop_address(hop)
            if address is None:  # a name that hides the address, or none: the proxy that sent it is the last known hop
                break
            client = address
        return account_of(client)

    def _hops(self, forwarded: str) -> Iterator[str]:
        """The addresses of a field, the newest first."""
        hops = _hops_of_forwarded(forwarded) if self.field == _FORWARDED else forwarded.split(",")
        yield from reversed(hops[-HOPS_MAX:])

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted if network.version == address.version)


def _hop_address(text: str) -> Address | None:
    """The address of a hop, which may have a port; None if there is none."""
    text = text.strip(" \t")
    matched = _WITH_PORT.fullmatch(text)
    return address_in(text if matched is None else matched[1] or matched[2] or "")


def _hops_of_forwarded(text: str) -> list[str]:
    """The value of `for` in each element of a Forwarded field, or nothing if the field breaks the grammar."""
    if not _FIELD.fullmatch(text):
        return []
    hops = [""]
    for name, value in _PIECE.findall(text):
        if not name:
            hops.append("")
        elif name.lower() == "for":
            hops[-1] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    return hops
