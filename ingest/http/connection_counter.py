"""Counts the connections of one port from the moment they are accepted, in all and by address."""

from collections.abc import Callable

from ingest.client_address import ClientAddresses
from pipeline.names import ConnectionRefusal


class Place:
    """A connection in the count, until it leaves. With a `refusal` it is not one of the limit, and ends soon."""

    __slots__ = ("_account", "_counter", "_has_left", "refusal")

    def __init__(self, counter: "ConnectionCounter", account: str | None, refusal: ConnectionRefusal | None) -> None:
        self._counter = counter
        self._account = account  # None: not counted by address
        self._has_left = False
        self.refusal = refusal

    def leave(self) -> None:
        """The connection has ended. A second call does nothing."""
        if not self._has_left:
            self._has_left = True
            self._counter.forget(self.refusal, self._account)


class ConnectionCounter:
    """The connections of one port of one process. For the event loop only.

    `note_refusal` gets each connection above a limit: the limit, and the peer. `per_address_max` is the limit of one
    address, or of a /64 network of IPv6; 0: none, and no address is looked at. The addresses of trusted proxies have no
    limit: they are those of many clients.
    """

    def __init__(
        self,
        connections_max: int,
        note_refusal: Callable[[ConnectionRefusal, str | None], None],
        *,
        addresses: ClientAddresses,
        per_address_max: int = 0,
        full: ConnectionRefusal = ConnectionRefusal.PROCESS,
    ) -> None:
        self._connections_max = connections_max
        self._per_address_max = per_address_max
        self._addresses = addresses
        self._note_refusal = note_refusal
        self._full = full
        self.count = 0  # open connections, and those on which TLS begins
        self.refusing = 0  # connections above a limit that have not ended yet
        self.by_address: dict[str, int] = {}  # of those in `count`; an address without a connection is not in it

    def enter(self, peer: str | None) -> Place:
        """The place of a new connection. If it is above a limit, its place has a refusal."""
        account, refusal = None, None
        if self.count >= self._connections_max:
            refusal = self._full
        elif self._per_address_max and not self._addresses.is_proxy(peer):
            account = self._addresses.account(peer)
            if self.by_address.get(account, 0) >= self._per_address_max:
                refusal = ConnectionRefusal.ADDRESS
        if refusal is not None:
            self.refusing += 1
            self._note_refusal(refusal, peer)
            return Place(self, None, refusal)
        self.count += 1
        if account is not None:
            self.by_address[account] = self.by_address.get(account, 0) + 1
        return Place(self, account, None)

    def forget(self, refusal: ConnectionRefusal | None, account: str | None) -> None:
        """A connection has ended; see Place.leave."""
        if refusal is not None:
            self.refusing -= 1
            return
        self.count -= 1
        if account is not None:
            left = self.by_address[account] - 1
            if left:
                self.by_address[account] = left
            else:
                del self.by_address[account]
