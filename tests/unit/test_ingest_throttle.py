"""What one ingest process counts and reports of its refusals, and how it answers while the control store is away."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from ingest.account_reports import AccountReports
from ingest.accounts import Accounts, Surroundings
from ingest.throttle import KEPT_SECONDS, KNOWN_SECONDS, STALE_SECONDS, ThrottleView
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryServer, MemoryThrottle
from pipeline.errors import StoreUnavailableError
from pipeline.flow.refusals import Refusals, Refused
from pipeline.loops import Loop
from pipeline.names import LimitedBy, LoopName
from pipeline.settings import Settings

AROUND = Surroundings(1000.0, 1, None)


class Rig:
    def __init__(self, **changes: Any) -> None:
        self.settings = Settings(**changes)
        self.clock = ManualClock()
        self.accounts = Accounts(self.settings, self.clock)
        self.server = MemoryServer(self.clock)
        self.throttle = MemoryThrottle(self.settings, self.server)

    def second(self) -> Mapping[int, Refusals]:
        self.clock.advance(1.0)
        self.accounts.fold(AROUND)
        return self.accounts.refused_unreported


def test_bodies_are_counted_by_account_and_reason() -> None:
    rig = Rig()
    one, two = rig.accounts.enter("192.0.2.1"), rig.accounts.enter("192.0.2.2")
    one.refuse(LimitedBy.RATE, 20)
    one.refuse(LimitedBy.SHARE, 5)
    one.refuse_unread(LimitedBy.SHARE)  # counts as the last one that was read
    two.refuse_unread(LimitedBy.LEVEL)  # nothing was read yet
    rig.second()
    assert rig.accounts.refused_here() == Refusals(
        {
            "192.0.2.1": {"rate": Refused(1, 20), "share": Refused(2, 10)},
            "192.0.2.2": {"level": Refused(1, 1)},
        }
    )
    # And a second without refusals changes nothing
    rig.accounts.note_reported(rig.accounts.refused_unreported)
    assert rig.second() == {}


def test_an_account_that_leaves_and_accounts_beyond_the_bound_are_counted() -> None:
    rig = Rig(ingest_connections_max=1, accounts_max=8)
    for number in range(1 + 8 * 8):
        tally = rig.accounts.enter(f"10.0.0.{number}")
        tally.refuse(LimitedBy.RATE, number + 1)
        rig.accounts.leave(tally)
    beyond = rig.accounts.enter("192.0.2.1")
    beyond.refuse(LimitedBy.RATE, 1000)
    rig.second()
    found = rig.accounts.refused_here()
    assert len(found.accounts) == 8
    assert "10.0.0.64" in found.accounts
    assert found.total == Refused(66, 65 * 66 // 2 + 1000)


def test_a_lost_report_is_sent_again_and_nothing_is_sent_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.account_reports.REPORT_SECONDS", 0.005)
    rig = Rig()
    sent: list[Mapping[int, Refusals]] = []

    class Lossy(MemoryThrottle):
        def report(self, process: str, slices: Mapping[int, Refusals]) -> None:
            sent.append(slices)
            if len(sent) == 1:
                raise StoreUnavailableError
            super().report(process, slices)

    async def run() -> None:
        done = asyncio.Event()
        began = rig.clock.monotonic()

        def around() -> Surroundings:
            rig.clock.advance(1.0)
            if rig.clock.monotonic() > began + 20:
                done.set()
            return AROUND

        reports = AccountReports(
            rig.accounts,
            offers=None,
            throttle=Lossy(rig.settings, rig.server),
            around=around,
            process="one",
            loop=Loop(LoopName.ACCOUNTS, rig.clock),
        )
        rig.accounts.enter("192.0.2.1").refuse(LimitedBy.RATE, 7)
        reports.start()
        async with asyncio.timeout(30):
            await done.wait()
        reports.close()

    asyncio.run(run())
    [first, second] = sent
    assert first == second
    assert list(first.values()) == [Refusals({"192.0.2.1": {"rate": Refused(1, 7)}})]
    assert rig.throttle.reported() == next(iter(second.values()))


def test_one_read_serves_all_requests_of_a_second() -> None:
    rig = Rig()
    rig.throttle.report("one", {0: Refusals({"192.0.2.1": {"rate": Refused(1, 7)}})})
    reads: list[None] = []

    class Counted(MemoryThrottle):
        def reported(self) -> Refusals:
            reads.append(None)
            return super().reported()

    async def ask() -> None:
        view = ThrottleView(Counted(rig.settings, rig.server), rig.accounts.refused_here, rig.clock)
        documents = await asyncio.gather(*(view.document(None) for _ in range(5)))
        assert [one["events"] for one in documents] == [7] * 5
        assert documents[0]["complete"]
        assert len(reads) == 1
        rig.clock.advance(KEPT_SECONDS + 0.1)
        await view.document(None)
        assert len(reads) == 2
        view.close()
        assert not (await view.document(None))["complete"]

    asyncio.run(ask())


def test_while_the_control_store_is_away_a_process_answers_for_itself() -> None:
    rig = Rig()
    rig.accounts.enter("192.0.2.1").refuse(LimitedBy.RATE, 3)
    rig.second()
    rig.server.is_unavailable = True

    async def ask() -> None:
        for throttle in (rig.throttle, None):
            view = ThrottleView(throttle, rig.accounts.refused_here, rig.clock)
            document = await view.document("192.0.2.1")
            assert (document["complete"], document["events"]) == (False, 3)
            assert [one["account"] for one in document["accounts"]] == ["192.0.2.1"]
            view.close()

    asyncio.run(ask())


def test_health_and_page_know_the_refusals_of_all_processes_without_a_wait() -> None:
    rig = Rig()
    rig.accounts.enter("192.0.2.1").refuse(LimitedBy.RATE, 3)
    rig.second()
    rig.throttle.report("another", {0: Refusals({"192.0.2.2": {"rate": Refused(1, 7)}})})
    reads: list[None] = []

    class Counted(MemoryThrottle):
        def reported(self) -> Refusals:
            reads.append(None)
            return super().reported()

    async def look() -> None:
        view = ThrottleView(Counted(rig.settings, rig.server), rig.accounts.refused_here, rig.clock)
        # Given nothing is known yet, the first answer is that of this process
        assert list(view.known().accounts) == ["192.0.2.1"]
        await view.document(None)
        # Then it is that of all, and is asked for again only after some seconds
        assert "192.0.2.2" in view.known().accounts
        view.known()
        assert len(reads) == 1
        rig.clock.advance(KNOWN_SECONDS + 0.1)
        assert "192.0.2.2" in view.known().accounts  # the last answer, while the next one is on its way
        await view.document(None)
        assert len(reads) == 2
        # When the control store is away for long, then an old answer is not shown
        rig.server.is_unavailable = True
        rig.clock.advance(STALE_SECONDS + 0.1)
        assert list(view.known().accounts) == ["192.0.2.1"]
        await view.document(None)
        view.close()

    asyncio.run(look())
    # And a caller without an event loop gets that of this process
    view = ThrottleView(rig.throttle, rig.accounts.refused_here, rig.clock)
    assert list(view.known().accounts) == ["192.0.2.1"]
    view.close()
