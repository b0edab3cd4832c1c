"""Counts of connections: exact, bounded, and forgotten."""

import random

import pytest

from ingest.client_address import ClientAddresses
from ingest.http.connection_counter import ConnectionCounter, Place
from pipeline.names import ConnectionRefusal
from pipeline.settings import Settings

PEERS = ["192.0.2.1", "192.0.2.2", "2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::1", "::ffff:192.0.2.1", None]


class Rig:
    def __init__(self, connections_max: int = 100, per_address_max: int = 0, **changes: str) -> None:
        self.refused: list[tuple[ConnectionRefusal, str | None]] = []
        self.counter = ConnectionCounter(
            connections_max,
            lambda reason, peer: self.refused.append((reason, peer)),
            addresses=ClientAddresses(Settings(**changes)),  # type: ignore[arg-type]
            per_address_max=per_address_max,
        )


def test_without_a_limit_of_addresses_none_is_looked_at() -> None:
    rig = Rig(connections_max=2)
    places = [rig.counter.enter("no address at all") for _ in range(3)]
    assert [place.refusal for place in places] == [None, None, ConnectionRefusal.PROCESS]
    assert not rig.counter.by_address
    assert (rig.counter.count, rig.counter.refusing) == (2, 1)


@pytest.mark.parametrize(
    ("peers", "refused"),
    [
        (["192.0.2.1", "192.0.2.1"], True),
        (["192.0.2.1", "192.0.2.2"], False),
        (["192.0.2.1", "::ffff:192.0.2.1"], True),  # a socket for both families
        (["2001:db8:0:1::1", "2001:db8:0:1:ffff::2"], True),  # a client with IPv6 has a whole /64 network
        (["2001:db8:0:1::1", "2001:db8:0:2::1"], False),
        (["fe80::1%eth0", "fe80::2%eth1"], True),
        ([None, None], True),
    ],
)
def test_an_address_of_ipv6_is_its_network(peers: list[str | None], refused: bool) -> None:
    rig = Rig(per_address_max=1)
    places = [rig.counter.enter(peer) for peer in peers]
    assert [place.refusal for place in places] == [None, ConnectionRefusal.ADDRESS if refused else None]
    assert rig.refused == ([(ConnectionRefusal.ADDRESS, peers[1])] if refused else [])


def test_the_limit_of_all_comes_first_and_takes_nothing_from_an_address() -> None:
    rig = Rig(connections_max=1, per_address_max=1)
    rig.counter.enter("192.0.2.1")
    assert rig.counter.enter("192.0.2.1").refusal is ConnectionRefusal.PROCESS
    assert rig.counter.enter("192.0.2.2").refusal is ConnectionRefusal.PROCESS
    assert rig.counter.by_address == {"192.0.2.1": 1}


def test_trusted_proxies_are_not_counted_by_address() -> None:
    rig = Rig(per_address_max=1, trusted_proxies="192.0.2.0/24")
    places = [rig.counter.enter("192.0.2.1") for _ in range(3)]
    assert [place.refusal for place in places] == [None] * 3
    assert not rig.counter.by_address
    for place in places:
        place.leave()
    assert rig.counter.count == 0


def test_whoever_leaves_twice_has_left_once() -> None:
    rig = Rig(connections_max=2, per_address_max=1)
    one, refused = rig.counter.enter("192.0.2.1"), rig.counter.enter("192.0.2.1")
    rig.counter.enter("192.0.2.2")
    for _ in range(2):
        one.leave()
        refused.leave()
    assert (rig.counter.count, rig.counter.refusing) == (1, 0)
    assert rig.counter.by_address == {"192.0.2.2": 1}


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_a_list_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    rig = Rig(connections_max=8, per_address_max=3)
    held: list[tuple[str | None, Place]] = []
    account = ClientAddresses(Settings()).account
    for _ in range(500):
        if held and chance.random() < 0.5:
            held.pop(chance.randrange(len(held)))[1].leave()
        else:
            peer = chance.choice(PEERS)
            held.append((peer, rig.counter.enter(peer)))
        counted = [account(peer) for peer, place in held if place.refusal is None]
        assert rig.counter.count == len(counted) <= 8
        assert rig.counter.refusing == len(held) - len(counted)
        assert rig.counter.by_address == {one: counted.count(one) for one in counted}
        assert max(rig.counter.by_address.values(), default=0) <= 3
