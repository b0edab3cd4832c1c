"""The load of bodies of several sizes: whose body comes back, and what each size got of its share."""

import asyncio
import itertools
import json

from aiohttp import web

from checks.bench.mixed_bodies import SIZES, Got, offer_mixed, shares, table


def test_shares_are_parts_of_an_equal_share_of_what_was_admitted() -> None:
    found = {1: Got(admitted=1500), 20: Got(admitted=50), 1000: Got(admitted=1)}
    assert shares(found) == {1: 1500 / (3500 / 3), 20: 1000 / (3500 / 3), 1000: 1000 / (3500 / 3)}
    assert shares({1: Got(), 20: Got()}) == {1: 0.0, 20: 0.0}
    assert table({20: Got(offered=9, admitted=4, retried=5)})[2:] == ["| 20 | 9 | 5 | 4 | 1.00 |"]


async def offered(*statuses: int, skip: float) -> tuple[dict[int, Got], list[int]]:
    """Bodies of all sizes for a moment, to a server that answers with these in turn; the sizes that it got."""
    sizes: list[int] = []
    left = itertools.cycle(statuses)

    async def answer(request: web.Request) -> web.Response:
        sizes.append(len(json.loads(await request.read())))
        return web.Response(status=next(left), headers={"Retry-After": "0"})

    app = web.Application(client_max_size=10_000_000)
    app.router.add_post("/api/logs", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        return await offer_mixed(port, 20_000, 0.2, seed=1, skip=skip), sizes
    finally:
        await runner.cleanup()


def test_every_size_offers_as_many_events_and_a_refused_body_comes_back_once() -> None:
    found, sizes = asyncio.run(offered(429, skip=0.0))
    assert set(sizes) == set(SIZES)
    for size, got in found.items():
        assert got.offered == got.retried > 0
        assert sizes.count(size) == 2 * got.offered
        assert got.admitted == got.failed == 0
    assert 0.5 < 20 * found[20].offered / found[1].offered < 2


def test_an_admitted_or_failed_body_does_not_come_back() -> None:
    found, sizes = asyncio.run(offered(202, 503, skip=0.0))
    assert sum(got.offered for got in found.values()) == len(sizes)
    assert sum(got.admitted for got in found.values()) == (len(sizes) + 1) // 2
    assert sum(got.failed for got in found.values()) == len(sizes) // 2


def test_bodies_before_the_counted_time_are_sent_and_not_counted() -> None:
    found, sizes = asyncio.run(offered(202, skip=60.0))
    assert sizes
    assert sum(got.offered for got in found.values()) == 0
