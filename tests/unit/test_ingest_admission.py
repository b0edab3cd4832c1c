"""Admission's leases on a clock that is moved by hand."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from checks.testbed.waiting import WAIT_SECONDS_MAX, eventually_in_loop
from ingest.admission import COUNT_SECONDS, FILL_SECONDS_MAX, PRESENCE_QUIET_SECONDS, Admission, _Fill
from ingest.errors import RateLimitedError
from pipeline.clock import ManualClock
from pipeline.control_store.common import CALL_SECONDS_MAX
from pipeline.control_store.memory import MemoryBucket, MemoryControlStore, MemoryServer
from pipeline.errors import StoreUnavailableError
from pipeline.metrics import IngestMetrics
from pipeline.names import LEVEL_HIGHEST, Level, LimitedBy, Mode, PauseReason
from pipeline.ports.bucket import Grant
from pipeline.ports.control import limited_by
from pipeline.settings import Settings


class _Bucket:
    """The memory bucket, with what was asked of it, and a gate before its answers."""

    def __init__(self, settings: Settings, server: MemoryServer) -> None:
        self._bucket = MemoryBucket(settings, server)
        self.asked: list[tuple[int, int]] = []
        self.returned: list[int] = []
        self.grants: list[Grant] = []
        self.gate = threading.Event()
        self.gate.set()
        self.scripted: list[Grant] = []
        self.is_cut_off = False  # for this process alone
        self.before_answer: Callable[[], None] = lambda: None

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0, level: Level = LEVEL_HIGHEST) -> Grant:
        assert 0 <= needed <= wanted
        if self.is_cut_off:
            raise StoreUnavailableError
        self.asked.append((needed, wanted))
        self.returned.append(returned)
        self.gate.wait(WAIT_SECONDS_MAX)
        self.before_answer()
        grant = self.scripted.pop(0) if self.scripted else self._bucket.take(
            needed=needed, wanted=wanted, process=process, returned=returned, level=level
        )  # fmt: skip
        self.grants.append(grant)
        return grant


class _Rig:
    def __init__(self, *, rate: float = 1000.0, beside: "_Rig | None" = None, **changes: object) -> None:
        self.clock: ManualClock = ManualClock() if beside is None else beside.clock
        self.server: MemoryServer = MemoryServer(self.clock) if beside is None else beside.server
        settings = Settings(rate_max=rate, rate_min=min(rate, 100.0), ingest_processes_max=1)
        self.settings = replace(settings, **changes)  # type: ignore[arg-type]
        self.bucket = _Bucket(self.settings, self.server)
        self.admission = Admission(
            self.settings, self.bucket, self.clock, IngestMetrics(CollectorRegistry(auto_describe=True))
        )
        self.store = MemoryControlStore(self.settings, self.server)
        if beside is None:
            self.publish(rate)

    def publish(self, rate: float) -> None:
        self.store.publish_rate(
            base_rate=rate, floor_rate=100, mode=Mode.NORMAL, lag=0, lag_known_at=self.clock.now(), actor="test"
        )

    def note(self) -> None:
        """Tell admission of the published rate, as the follower does."""
        if not self.server.is_unavailable:
            rate = self.store.state().rate
            assert rate is not None
            self.admission.note_rate(rate.version, rate.rate)

    async def start(self) -> None:
        self.note()
        self.admission.start(asyncio.get_running_loop())
        await self.settled(1)

    async def ask(self) -> None:
        """Call the bucket for no tokens, and wait for its answer."""
        assert not self.admission._is_asking
        self.admission._ask(lease=0)
        await self.settled(1)

    async def settled(self, calls: int) -> None:
        """Until so many calls to the bucket are answered."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while len(self.bucket.asked) < calls or self.admission._is_asking:
            assert time.monotonic() < deadline, f"{self.bucket.asked}"
            await asyncio.sleep(0.001)

    def tokens(self) -> float:
        return self.bucket.grants[-1].tokens


@pytest.fixture(autouse=True)
def no_calls_but_those_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.admission.PRESENCE_SECONDS", 3600)


@pytest.fixture
def rig() -> _Rig:
    return _Rig()


async def test_a_lease_is_taken_at_the_start_and_spent_in_memory(rig: _Rig) -> None:
    await rig.start()
    assert rig.bucket.asked == [(1, 30)]
    for _ in range(14):
        assert rig.admission.take_now(1)
    assert rig.bucket.asked == [(1, 30)]


async def test_a_lease_is_renewed_before_it_is_used_up_by_one_call_at_a_time(rig: _Rig) -> None:
    await rig.start()
    rig.bucket.gate.clear()
    for _ in range(30):
        assert rig.admission.take_now(1)
    assert len(rig.bucket.asked) <= 2
    rig.bucket.gate.set()
    await rig.settled(2)
    assert rig.bucket.asked == [(1, 30), (1, 30)]
    assert rig.admission.take_now(30)


async def test_a_need_above_the_lease_gives_it_back_and_is_one_call_that_also_renews_it(rig: _Rig) -> None:
    await rig.start()
    await rig.admission.take(100)
    assert (rig.bucket.asked, rig.bucket.returned) == ([(1, 30), (100, 130)], [0, 30])
    assert rig.tokens() == 870
    assert rig.admission.take_now(30)


async def test_requests_that_wait_share_a_call_and_are_served_in_turn(rig: _Rig) -> None:
    await rig.start()
    assert rig.admission.take_now(30)  # asks in advance
    rig.bucket.gate.clear()
    order: list[int] = []

    async def take(name: int, count: int) -> None:
        await rig.admission.take(count)
        order.append(name)

    tasks = [asyncio.create_task(take(name, 40)) for name in range(5)]
    await asyncio.sleep(0.02)
    assert order == []
    rig.bucket.gate.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert len(rig.bucket.asked) <= 3


async def test_an_empty_bucket_is_not_asked_until_it_has_something(rig: _Rig) -> None:
    # Given a bucket that was emptied
    await rig.start()
    await rig.admission.take(1069)
    with pytest.raises(RateLimitedError) as refused:
        await rig.admission.take(100)
    assert refused.value.retry_after_seconds == pytest.approx(0.07, abs=0.002)  # until the debt is paid
    # When many more come, they are refused without asking
    calls = len(rig.bucket.asked)
    for _ in range(100):
        with pytest.raises(RateLimitedError):
            await rig.admission.take(100)
    assert len(rig.bucket.asked) == calls
    # Then at the predicted time it is asked, and gives
    rig.clock.advance(refused.value.retry_after_seconds + 0.001)  # seconds since the epoch are coarse floats
    await rig.admission.take(100)
    assert len(rig.bucket.asked) == calls + 1


async def test_known_empty_is_refused_before_the_body(rig: _Rig) -> None:
    await rig.start()
    assert rig.admission.refusal(1) is None
    await rig.admission.take(1000)
    refusal = rig.admission.refusal(1)
    assert refusal is not None
    assert (refusal.quota, refusal.left) == (1000, 0)
    rig.clock.advance(0.05)
    assert rig.admission.refusal(1) is None


async def test_a_drained_bucket_is_asked_rarely(rig: _Rig) -> None:
    # Given ten times more demand than the rate, for a second
    await rig.start()
    await rig.admission.take(1000)
    passed, calls = 0, len(rig.bucket.asked)
    for _ in range(10_000):
        rig.clock.advance(0.0001)
        try:
            await rig.admission.take(1)
            passed += 1
        except RateLimitedError:
            pass
    # Then the rate is used in full, and not above
    assert 960 <= passed <= 1000
    assert len(rig.bucket.asked) - calls <= 110


async def test_a_body_above_the_burst_is_one_admission_and_leaves_a_debt(rig: _Rig) -> None:
    await rig.start()
    rig.clock.advance(1)
    await rig.admission.take(2500)
    assert rig.tokens() == -1500
    # Then bodies of all sizes wait for the same time, without calls
    calls = len(rig.bucket.asked)
    for size in (1, 100, 2500):
        with pytest.raises(RateLimitedError) as refused:
            await rig.admission.take(size)
        assert refused.value.retry_after_seconds == pytest.approx(1.501, abs=0.002)
    assert len(rig.bucket.asked) == calls


@pytest.mark.parametrize("size", [1, 100, 1000, 2500])
@pytest.mark.parametrize("rate", [1000.0, 100.0])
async def test_a_body_that_comes_back_when_it_was_told_passes_if_no_other_came_first(rate: float, size: int) -> None:
    rig = _Rig(rate=rate)
    await rig.start()
    await rig.admission.take(3000)
    with pytest.raises(RateLimitedError) as refused:
        await rig.admission.take(size)
    assert refused.value.retry_after_seconds == pytest.approx((3001 - rate) / rate, abs=0.002)
    # Not before, and then at once
    rig.clock.advance(refused.value.retry_after_seconds - 0.005)
    with pytest.raises(RateLimitedError) as again:
        await rig.admission.take(size)
    assert again.value.retry_after_seconds <= 0.0101
    rig.clock.advance(again.value.retry_after_seconds + 0.001)
    await rig.admission.take(size)


async def test_a_refused_client_is_told_to_come_when_the_sink_has_caught_up(rig: _Rig) -> None:
    await rig.start()
    await rig.admission.take(1500)
    rig.admission.note_drain(12.5)
    refusal = rig.admission.refusal(1)
    assert refusal is not None
    assert refusal.retry_after_seconds == 12.5
    rig.clock.advance(0.25)
    refusal = rig.admission.refusal(1)
    assert refusal is not None
    assert refusal.retry_after_seconds == pytest.approx(12.25), "the time passes"
    rig.admission.note_drain(0.1)
    refusal = rig.admission.refusal(1)
    assert refusal is not None
    assert refusal.retry_after_seconds == pytest.approx(0.251, abs=0.002)


async def test_a_refusal_says_what_decides_the_rate_and_since_when(rig: _Rig) -> None:
    def said() -> tuple[LimitedBy, float]:
        rig.admission.note_limit(*limited_by(rig.store.state()))
        refusal = rig.admission.refusal(1)
        assert refusal is not None
        return refusal.limited_by, refusal.since

    rig.store.restore([], actor="controller")
    started_at = rig.clock.now()
    await rig.start()
    await rig.admission.take(3000)
    rig.clock.advance(0.1)
    assert said() == (LimitedBy.RATE, started_at)
    # An operator's rate, and above it the open breaker
    rig.store.set_override(400.0, until=rig.clock.now() + 60, actor="ann@host", why="an import")
    set_at = rig.clock.now()
    rig.clock.advance(0.1)
    assert said() == (LimitedBy.OVERRIDE, set_at)
    rig.store.pause(PauseReason.BREAKER, actor="worker", why="PostgreSQL")
    opened_at = rig.clock.now()
    rig.clock.advance(0.1)
    assert said() == (LimitedBy.BREAKER, opened_at)
    # A breaker that lowers nothing is not the reason
    rig.store.set_override(50.0, until=rig.clock.now() + 60, actor="ann@host", why="less")
    assert said()[0] is LimitedBy.OVERRIDE
    # When both are over, the policy limits again, from now on
    rig.clock.advance(0.1)
    rig.store.clear_override(actor="ann@host", why="done")
    rig.store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="well")
    assert said() == (LimitedBy.RATE, rig.clock.now())
    rig.clock.advance(0.1)
    assert said() == (LimitedBy.RATE, rig.clock.now() - 0.1)


async def test_a_body_passes_with_a_rest_of_the_lease_although_the_bucket_is_drained(rig: _Rig) -> None:
    # Given a drained bucket that was asked just now, and a lease of five tokens
    await rig.start()
    rig.bucket.scripted = [replace(rig.bucket.grants[-1], granted=5, tokens=0.0)]
    assert rig.admission.take_now(30)
    await rig.settled(2)
    assert rig.admission._left == 5
    # When a body comes that is larger, then it passes by the five, as a small one would
    MemoryBucket(rig.settings, rig.server).take(needed=970, wanted=970, process="another")
    await rig.admission.take(200)
    assert (rig.bucket.asked[-1], rig.bucket.returned[-1], rig.tokens()) == ((200, 230), 5, -195)


async def test_while_a_body_waits_for_its_call_smaller_ones_do_not_use_up_its_lease(rig: _Rig) -> None:
    await rig.start()
    MemoryBucket(rig.settings, rig.server).take(needed=970, wanted=970, process="another")
    rig.bucket.gate.clear()
    large = asyncio.create_task(rig.admission.take(400))
    await asyncio.sleep(0)
    assert not rig.admission.take_now(1)
    rig.bucket.gate.set()
    await large
    assert rig.tokens() == -370


async def test_tokens_of_what_was_not_stored_go_back_with_the_next_call(rig: _Rig) -> None:
    await rig.start()
    await rig.admission.take(500)
    level = rig.tokens()
    rig.admission.give_back(400)
    await rig.ask()
    assert (rig.bucket.returned[-1], rig.tokens()) == (400, level + 400)
    # And once only; a bucket that is away does not get them
    await rig.ask()
    assert rig.tokens() == level + 400


async def test_tokens_of_what_was_not_stored_go_back_to_the_bucket_of_the_process(rig: _Rig) -> None:
    # Given a process without the bucket, which has used up what it may admit
    await rig.start()
    rig.server.is_unavailable = True
    assert rig.admission.take_now(30)
    await _until(lambda: rig.admission.is_local)
    rig.clock.advance(0.1)
    await rig.admission.take(100)
    with pytest.raises(RateLimitedError):
        await rig.admission.take(1)
    # When what it admitted was not stored, then it may admit as much again
    rig.admission.give_back(100)
    await rig.admission.take(99)
    await rig.admission.take(1)
    with pytest.raises(RateLimitedError):
        await rig.admission.take(1)


async def test_a_lower_rate_voids_the_lease(rig: _Rig) -> None:
    await rig.start()
    rig.clock.advance(1)
    rig.publish(200)
    rig.note()
    assert not rig.admission.take_now(1)
    await rig.admission.take(1)
    assert rig.bucket.asked[-1] == (1, 7)
    assert rig.admission.rate(rig.clock.monotonic()) == 200
    # Then its tokens are back in the bucket, which holds no more than a burst of the lower rate
    assert rig.bucket.returned[-1] == 30
    assert rig.tokens() == 200 - 7


async def test_a_lower_rate_that_a_grant_brings_gives_the_rest_of_the_lease_back(rig: _Rig) -> None:
    await rig.start()
    rig.clock.advance(1)
    rig.publish(200)
    await rig.ask()
    assert not rig.admission.take_now(1)
    await rig.admission.take(1)
    assert rig.bucket.returned[-1] == 30


async def test_a_higher_rate_keeps_the_lease_and_is_used_at_once(rig: _Rig) -> None:
    await rig.start()
    await rig.admission.take(990)
    left = rig.admission._left
    assert left == 10
    await rig.admission.take(200)
    with pytest.raises(RateLimitedError):
        await rig.admission.take(200)
    rig.clock.advance(0.02)
    rig.publish(100_000)
    rig.note()
    # Then the bucket is asked anew, and fills by the new rate from then on
    with pytest.raises(RateLimitedError):
        await rig.admission.take(200)
    rig.clock.advance(0.011)
    await rig.admission.take(200)


async def test_a_grant_of_an_older_higher_rate_is_void(rig: _Rig) -> None:
    await rig.start()
    known = rig.bucket.grants[-1]
    # Given a call whose answer was made before a lower rate was published, and comes after it
    rig.bucket.scripted = [replace(known, granted=500, version=known.version)]
    rig.publish(200)
    rig.note()
    await rig.admission.take(1)
    # Then its tokens are not used
    assert len(rig.bucket.asked) == 3
    assert not rig.admission.take_now(200)


async def test_two_such_grants_in_a_row_are_believed(rig: _Rig) -> None:
    # A flushed server knows older rates only: waiting for better ones would be for ever.
    await rig.start()
    old = replace(rig.bucket.grants[-1], granted=5)
    rig.publish(200)
    rig.note()
    rig.bucket.scripted = [old, old]
    await rig.admission.take(1)
    assert len(rig.bucket.asked) == 3


async def test_the_bucket_away_goes_by_the_last_rate_over_live_processes(rig: _Rig) -> None:
    # Given two live processes, and a lease that is used up
    MemoryBucket(rig.settings, rig.server).take(needed=1, wanted=1, process="another")
    await rig.start()
    rig.server.is_unavailable = True
    assert rig.admission.take_now(30)
    await rig.settled(2)
    # Then there is no burst, and half of the rate from now on
    assert rig.admission.is_local
    assert await _passes_in(rig, 1.0) == pytest.approx(500, abs=5)
    # And it holds for six periods since the rate was first seen, then halves in each
    rig.clock.advance(28)
    assert rig.admission.rate(rig.clock.monotonic()) == 1000
    rig.clock.advance(6)
    assert rig.admission.rate(rig.clock.monotonic()) == pytest.approx(500)
    assert await _passes_in(rig, 1.0) == pytest.approx(250 * 0.93 + 250, abs=30), "the burst, and a second's tokens"
    # And never below the floor
    rig.clock.advance(1000)
    assert rig.admission.rate(rig.clock.monotonic()) == 100
    # And when it returns, the bucket decides again
    rig.server.is_unavailable = False
    await _until(lambda: not rig.admission.is_local)
    assert rig.bucket.grants[-1].granted


async def test_a_rate_set_by_hand_ends_while_the_bucket_is_away(rig: _Rig) -> None:
    # Given a rate that somebody set for ten seconds, a lease that is used up, and a bucket that goes away
    rig.store.set_override(400.0, until=rig.clock.now() + 10, actor="ann@host", why="an import")
    published = rig.store.state().rate
    assert published is not None
    rig.admission.note_rate(published.version, published.rate, ends_in=10.0, rate_after=1000.0)
    await rig.start()
    rig.server.is_unavailable = True
    while rig.admission.take_now(1):
        pass
    await _until(lambda: rig.admission.is_local)
    assert rig.admission.rate(rig.clock.monotonic()) == 400
    # When its time is up, then the policy's rate holds, though nobody can be asked
    rig.clock.advance(10)
    assert rig.admission.rate(rig.clock.monotonic()) == 1000


async def test_requests_do_not_wait_for_a_bucket_that_is_known_to_be_away(rig: _Rig) -> None:
    await rig.start()
    rig.server.is_unavailable = True
    assert rig.admission.take_now(30)
    await rig.settled(2)
    rig.bucket.gate.clear()
    rig.clock.advance(0.01)
    await asyncio.wait_for(rig.admission.take(5), WAIT_SECONDS_MAX / 2)
    rig.bucket.gate.set()


async def test_without_any_rate_ever_known_the_floor_holds() -> None:
    rig = _Rig()
    rig.server.is_unavailable = True
    await rig.start()
    assert rig.admission.is_local
    assert await _passes_in(rig, 1.0) == pytest.approx(100, abs=2)


async def test_a_defect_of_the_bucket_is_no_answer_to_a_client_but_a_bucket_that_is_away(
    rig: _Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.start()
    rig.bucket.before_answer = lambda: 1 // 0  # type: ignore[assignment]
    with pytest.raises(RateLimitedError):
        await rig.admission.take(500)
    assert rig.admission.is_local
    assert "the lease taker of this process failed because of a defect" in caplog.text
    rig.bucket.before_answer = lambda: None
    await _until(lambda: not rig.admission.is_local)
    await rig.admission.take(500)


async def test_several_processes_share_one_bucket() -> None:
    # Given three processes on one server, each with more demand than the rate
    rigs = _rigs(3)
    for rig in rigs:
        await rig.start()
    passed = 0
    for _ in range(2000):
        rigs[0].clock.advance(0.002)
        for rig in rigs:
            try:
                await rig.admission.take(2)
                passed += 2
            except RateLimitedError:
                pass
    # Then together they pass what the rate allows: one burst, four seconds' tokens, and no more
    assert 0.98 * 5000 <= passed <= 5000


async def test_processes_that_never_reached_the_bucket_admit_the_floor_together() -> None:
    # Given eight processes that start while the bucket is away
    rigs = _rigs(8)
    rigs[0].server.is_unavailable = True
    for rig in rigs:
        await rig.start()
    # Then they admit the floor together, and use it
    assert 0.9 * 100 * 10 <= await _passes_together(rigs, 10.0) <= 100 * 10


async def test_processes_that_reached_the_bucket_for_a_moment_admit_the_rate_together() -> None:
    # Given eight processes that start one by one, and a bucket that goes away before the first have heard of the last
    rigs = _rigs(8)
    for rig in rigs:
        await rig.start()
    rigs[0].server.is_unavailable = True
    leases = sum(rig.admission._left for rig in rigs)
    # Then they admit no more than the rate together, and what they had
    assert 0.9 * 1000 * 5 <= await _passes_together(rigs, 5.0) <= 1000 * 5 + leases


async def test_a_bucket_that_comes_back_empty_for_a_moment_does_not_lower_the_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given two processes that know of each other, and a bucket that is back for a moment without its memory
    rigs = await _settled_rigs(2, monkeypatch)
    rigs[0].server.is_unavailable = True
    await _passes_together(rigs, 1.0)
    await _until(lambda: all(rig.admission.is_local for rig in rigs))
    rigs[0].server.flush()
    rigs[0].server.is_unavailable = False
    rigs[1].bucket.is_cut_off = True
    await _until(lambda: not rigs[0].admission.is_local)
    # When it goes away again
    rigs[0].server.is_unavailable = True
    leases = sum(rig.admission._left for rig in rigs)
    # Then each goes by its half
    assert await _passes_together(rigs, 1.0) <= 1000 + leases


async def test_an_idle_process_is_counted_and_a_host_that_is_cut_off_admits_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given two processes without traffic for longer than a silent process is counted
    rigs = await _settled_rigs(2, monkeypatch)
    assert all(rig.admission._left == 30 for rig in rigs), "presence takes no tokens"
    # When one is cut off from the bucket, and both have more demand than the rate
    rigs[0].bucket.is_cut_off = True
    # Then together they admit the rate and the share of the one, a burst, and their leases
    passed = await _passes_together(rigs, 5.0)
    assert 0.9 * 1500 * 5 <= passed <= 1500 * 5 + 1000 + 60


async def test_a_quiet_process_renews_its_presence_less_often(rig: _Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.start()
    waits: list[float] = []
    call_later = asyncio.get_running_loop().call_later

    def noted(seconds: float, callback: Callable[..., object], *arguments: Any, **named: Any) -> object:
        if callback == rig.admission._renew_presence:
            waits.append(seconds)
            return None
        return call_later(seconds, callback, *arguments, **named)

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", noted)
    # When its presence is renewed with requests, then without them but with tokens to give back, and with them again
    for is_quiet in (False, True, False):
        rig.admission.is_quiet = is_quiet
        rig.admission._given_back = int(is_quiet)
        rig.admission._renew_presence()
        await rig.settled(len(waits) + 1)
    # Then each time the bucket is called, and the next time comes later only without requests
    assert rig.bucket.asked[1:] == [(0, 0)] * 3
    assert waits == [3600, PRESENCE_QUIET_SECONDS, 3600]
    # And the others have counted it, and it knows the bucket, for as long as if it was busy
    assert min(COUNT_SECONDS, FILL_SECONDS_MAX) >= PRESENCE_QUIET_SECONDS + CALL_SECONDS_MAX


@pytest.fixture
async def quiet(rig: _Rig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_Rig]:
    """A process without requests, which renews its presence all the time, and has a full bucket."""
    monkeypatch.setattr("ingest.admission.PRESENCE_QUIET_SECONDS", 0.001)
    await rig.start()
    rig.clock.advance(10)
    await rig.ask()
    rig.admission.is_quiet = True
    rig.admission._renew_presence()
    yield rig
    rig.admission.close()


async def _calls(rig: _Rig, count: int) -> None:
    """Until the bucket was called so often from now on."""
    most = len(rig.bucket.asked) + count
    await _until(lambda: len(rig.bucket.asked) >= most)


async def test_a_quiet_process_wakes_its_event_loop_only_for_an_answer_that_differs(
    quiet: _Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[Grant | None] = []
    settle = Admission._settle

    def noted(admission: Admission, wanted: int, answer: Grant | None) -> None:
        settled.append(answer)
        settle(admission, wanted, answer)

    monkeypatch.setattr(Admission, "_settle", noted)
    # When time passes, then the bucket counts it, and it knows what the bucket holds
    for _ in range(3):
        quiet.clock.advance(FILL_SECONDS_MAX)
        await _calls(quiet, 2)
        assert quiet.admission.tokens_seen(quiet.clock.monotonic()) is not None
    assert settled == []
    assert quiet.bucket.asked[-1] == (0, 0)
    # When a rate is published, which the follower has not read yet, then the event loop learns it, once
    quiet.publish(1000.0)
    await _until(lambda: settled != [])
    await _calls(quiet, 3)
    assert len(settled) == 1
    quiet.publish(300.0)
    await _until(lambda: quiet.admission.rate(quiet.clock.monotonic()) == 300.0)
    # And so it learns that the bucket does not answer
    await _calls(quiet, 3)
    quiet.server.is_unavailable = True
    await _until(lambda: quiet.admission.is_local)


async def test_requests_end_the_calls_of_a_quiet_process(quiet: _Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given one that waits for long before its next call
    monkeypatch.setattr("ingest.admission.PRESENCE_QUIET_SECONDS", 10 * WAIT_SECONDS_MAX)
    await _calls(quiet, 1)
    # When requests use up its lease, then those that need a call wait for no presence
    for _ in range(40):
        await asyncio.wait_for(quiet.admission.take(1), WAIT_SECONDS_MAX)
    assert max(wanted for _, wanted in quiet.bucket.asked[-2:]) > 0
    # And so it is when the process ends
    await quiet.ask()
    monkeypatch.setattr("ingest.admission.PRESENCE_SECONDS", 0)
    quiet.admission._renew_presence()
    assert quiet.admission._watch_ends is not None
    await _calls(quiet, 1)
    quiet.admission.close()
    await asyncio.to_thread(quiet.admission._executor.shutdown, wait=True)


async def test_a_look_shows_that_the_bucket_is_unavailable(rig: _Rig) -> None:
    await rig.start()
    rig.server.is_unavailable = True
    rig.admission.look()
    await _until(lambda: rig.admission.is_local)
    # And there are enough calls then anyway
    before = len(rig.bucket.asked)
    rig.admission.look()
    assert len(rig.bucket.asked) == before


async def test_a_process_that_has_ended_is_not_counted_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    rigs = await _settled_rigs(2, monkeypatch)
    rigs[1].admission.close()
    await _lives(rigs[:1], 12.0)
    rigs[0].server.is_unavailable = True
    leases = rigs[0].admission._left
    assert await _passes_together(rigs[:1], 1.0) == pytest.approx(1000 + leases, rel=0.05)


def test_a_decision_costs_as_much_as_a_few_calls_of_a_method() -> None:
    rig = _Rig()
    rig.admission._left = 10**9

    class Nothing:
        def take(self, count: int) -> None:
            pass

    # By turns, so that a busy machine slows both
    pairs = [(_seconds_of(Nothing().take), _seconds_of(rig.admission.take_now)) for _ in range(20)]
    assert min(decision for _, decision in pairs) < 5 * min(call for call, _ in pairs)


def _seconds_of(take: Callable[[int], object]) -> float:
    started = time.perf_counter()
    for _ in range(5_000):
        take(1)
    return time.perf_counter() - started


def _rigs(count: int) -> list[_Rig]:
    """Processes on one server."""
    first = _Rig(ingest_processes_max=8)
    return [first, *(_Rig(beside=first, ingest_processes_max=8) for _ in range(count - 1))]


async def _settled_rigs(count: int, monkeypatch: pytest.MonkeyPatch) -> list[_Rig]:
    """The same, which have all been there for some time, without traffic."""
    monkeypatch.setattr("ingest.admission.PRESENCE_SECONDS", 0.001)
    rigs = _rigs(count)
    for rig in rigs:
        await rig.start()
    await _lives(rigs, 12.0)
    return rigs


async def _lives(rigs: list[_Rig], seconds: float) -> None:
    """The clock moves on by this much, and each process asks the bucket in each second of it."""
    for _ in range(int(seconds)):
        rigs[0].clock.advance(1.0)
        before = [len(rig.bucket.asked) for rig in rigs]
        await _until(lambda b=before: all(len(r.bucket.asked) > n + 1 for r, n in zip(rigs, b, strict=True)))  # type: ignore[misc]


async def _passes_together(rigs: list[_Rig], seconds: float) -> int:
    """How many single events pass in all of these processes while the clock moves on by this much."""
    passed = 0
    for _ in range(1000):
        rigs[0].clock.advance(seconds / 1000)
        for rig in rigs:
            while True:
                try:
                    await rig.admission.take(1)
                except RateLimitedError:
                    break
                passed += 1
    return passed


async def _passes_in(rig: _Rig, seconds: float) -> int:
    """How many single events pass while the clock moves on by this much."""
    return await _passes_together([rig], seconds)


async def _until(condition: Callable[[], bool]) -> None:
    await eventually_in_loop(condition, look_seconds=0.01)


# --- Levels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def levels_rig() -> _Rig:
    return _Rig(admission_levels=True)


async def taken_by_another(rig: _Rig, count: int) -> None:
    """Another process takes tokens, and this one learns of it with its next call."""
    MemoryBucket(rig.settings, rig.server).take(needed=count, wanted=count, process="another")
    await rig.ask()


async def test_a_full_bucket_serves_every_level_in_memory(levels_rig: _Rig) -> None:
    await levels_rig.start()
    assert levels_rig.admission.admits_all_levels
    calls = len(levels_rig.bucket.asked)
    assert all(levels_rig.admission.take_level_now(3, level) for level in Level)
    assert len(levels_rig.bucket.asked) == calls


async def test_each_level_is_refused_when_the_bucket_is_at_its_reserve(levels_rig: _Rig) -> None:
    # Given a bucket whose tokens another process takes, step by step
    rig = levels_rig
    await rig.start()
    passing = []
    for count in (350, 200, 200, 200, 20):
        await taken_by_another(rig, count)
        passing.append([level.label for level in Level if rig.admission.take_level_now(1, level)])
    # Then the levels are refused from the lowest on; the lease is for the highest
    assert passing == [
        ["debug", "info", "warn", "error"],
        ["info", "warn", "error"],
        ["warn", "error"],
        ["error"],
        ["error"],
    ]
    assert not rig.admission.admits_all_levels


async def test_a_lease_has_a_token_only_if_no_level_has_to_wait(levels_rig: _Rig) -> None:
    # Given the same bucket, and a lease that is spent before the last look
    rig = levels_rig
    await rig.start()
    looks = []
    for count in (350, 200, 200, 200, 20):
        looks.append((rig.admission.has_token(), max(rig.admission.wait_seconds(1, level) for level in Level) == 0.0))
        await taken_by_another(rig, count)
    while rig.admission.take_now(1):
        pass
    looks.append((rig.admission.has_token(), rig.admission.wait_seconds(1, Level.DEBUG) == 0.0))
    # Then nothing has to wait as long as it has one, and nothing is found to pass that has to wait
    assert all(passes for has_token, passes in looks if has_token)
    assert [has_token for has_token, _ in looks] == [True, True, False, False, False, False]


async def test_a_lower_level_spends_the_lease_only_above_its_reserve(levels_rig: _Rig) -> None:
    # Given a lease of 30 tokens, and 585 in the bucket: 615 together, 599.4 are DEBUG's reserve
    rig = levels_rig
    await rig.start()
    await taken_by_another(rig, 385)
    spent = 0
    while rig.admission.take_level_now(1, Level.DEBUG):
        spent += 1
    assert spent == 15
    with pytest.raises(RateLimitedError):
        await rig.admission.take(1, Level.DEBUG)
    assert rig.admission.take_level_now(1, Level.INFO)


async def test_a_refusal_by_level_says_so_and_when_it_may_pass(levels_rig: _Rig) -> None:
    rig = levels_rig
    await rig.start()
    await taken_by_another(rig, 900)
    refusal = rig.admission.refusal(1, Level.DEBUG)
    assert refusal is not None
    assert (refusal.limited_by, refusal.quota, refusal.left) == (LimitedBy.LEVEL, 1000, 0)
    assert refusal.since == rig.clock.now()
    # 70 in the bucket, 30 in the lease, and 1 above the reserve of 599.4 is needed
    assert refusal.retry_after_seconds == pytest.approx(0.5004, abs=0.001)
    rig.clock.advance(refusal.retry_after_seconds + 0.001)
    await rig.admission.take(1, Level.DEBUG)
    # While it is refused again and again, the time is that of the first
    await taken_by_another(rig, 500)
    first = rig.admission.refusal(1, Level.DEBUG)
    assert first is not None
    for _ in range(3):
        rig.clock.advance(0.05)
        again = rig.admission.refusal(1, Level.DEBUG)
        assert again is not None
        assert again.since == first.since == refusal.since
    rig.clock.advance(20)
    await taken_by_another(rig, 900)
    later = rig.admission.refusal(1, Level.DEBUG)
    assert later is not None
    assert later.since == rig.clock.now()


async def test_where_the_highest_level_is_refused_too_the_rate_is_the_reason(levels_rig: _Rig) -> None:
    rig = levels_rig
    await rig.start()
    await rig.admission.take(1500)
    for level in Level:
        refusal = rig.admission.refusal(1, level)
        assert refusal is not None
        assert refusal.limited_by is LimitedBy.RATE
    waits = [rig.admission.wait_seconds(1, level) for level in Level]
    assert waits == sorted(waits, reverse=True)
    assert waits[Level.DEBUG] == pytest.approx(waits[Level.ERROR] + 0.5994, abs=0.001)


async def test_a_large_body_of_a_low_level_does_not_hold_up_a_higher_one(levels_rig: _Rig) -> None:
    rig = levels_rig
    await rig.start()
    await rig.admission.take(1500, Level.INFO)
    assert rig.tokens() == -500
    for _ in range(10):
        await rig.admission.take(15, Level.ERROR)
        await rig.admission.take(5, Level.WARN)
    with pytest.raises(RateLimitedError) as refused:
        await rig.admission.take(1, Level.DEBUG)
    assert refused.value.limited_by is LimitedBy.LEVEL


async def test_bodies_of_several_levels_wait_in_one_queue_and_each_by_its_own_level(levels_rig: _Rig) -> None:
    # Given a bucket at INFO's reserve, of which this process does not know, and a call under way
    rig = levels_rig
    await rig.start()
    MemoryBucket(rig.settings, rig.server).take(needed=580, wanted=580, process="another")
    rig.bucket.gate.clear()
    bodies = [(40, level) for level in (Level.INFO, Level.ERROR, Level.DEBUG, Level.WARN, Level.ERROR)]
    tasks = [asyncio.create_task(rig.admission.take(count, level)) for count, level in bodies]
    await asyncio.sleep(0.02)
    rig.bucket.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    # Then only the lowest is refused, and no more is taken than is admitted and a lease
    assert [isinstance(result, RateLimitedError) for result in results] == [False, False, True, False, False]
    assert rig.tokens() + rig.admission._left == pytest.approx(1000 - 580 - 160, abs=1)
    assert rig.admission._left <= 30


async def test_a_body_that_the_bucket_refuses_does_not_use_the_lease_that_comes_with_the_refusal(
    levels_rig: _Rig,
) -> None:
    # Given a bucket below DEBUG's reserve, of which this process does not know, and a lease that is too small
    rig = levels_rig
    await rig.start()
    MemoryBucket(rig.settings, rig.server).take(needed=580, wanted=580, process="another")
    rig.admission._left = 20
    # When a body asks, then it is refused, and a higher level may use what came
    with pytest.raises(RateLimitedError) as refused:
        await rig.admission.take(25, Level.DEBUG)
    assert refused.value.limited_by is LimitedBy.LEVEL
    assert (rig.bucket.asked[-1], rig.bucket.grants[-1].granted, rig.admission._left) == ((25, 55), 30, 30)
    assert rig.admission.take_level_now(25, Level.ERROR)


async def test_many_that_wait_at_a_low_level_do_not_take_what_higher_ones_need(levels_rig: _Rig) -> None:
    # Given a bucket just above INFO's reserve, and many bodies of INFO at once
    rig = levels_rig
    await rig.start()
    await taken_by_another(rig, 560)
    rig.bucket.gate.clear()
    tasks = [asyncio.create_task(rig.admission.take(1, Level.INFO)) for _ in range(300)]
    await asyncio.sleep(0.02)
    rig.bucket.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    passed = sum(result is None for result in results)
    assert passed == pytest.approx(1000 - 560 - 399.6, abs=2)
    # Then the bucket, and not this process, has the rest
    assert rig.admission._left <= 31
    assert rig.tokens() >= 365


async def test_an_allowance_lets_a_level_pass_though_its_reserve_is_never_there(levels_rig: _Rig) -> None:
    # Given more of the highest level than the rate, in small steps
    rig = levels_rig
    await rig.start()
    passed = dict.fromkeys(Level, 0)
    for step in range(6000):
        rig.clock.advance(0.001)
        for level in (Level.ERROR, Level(step % 3), Level.ERROR):
            try:
                await rig.admission.take(1, level)
            except RateLimitedError:
                continue
            passed[level] += 1
    # Then INFO and WARN get a hundredth of it, DEBUG nothing after the burst, and the rate is used
    burst = {Level.DEBUG: 400, Level.INFO: 200, Level.WARN: 200}
    assert passed[Level.INFO] >= 0.8 * 0.01 * 6000
    assert passed[Level.WARN] >= 0.8 * 0.01 * 6000
    assert passed[Level.DEBUG] <= burst[Level.DEBUG]
    assert sum(passed.values()) == pytest.approx(7000, abs=60)


async def test_calls_for_the_highest_level_do_not_put_off_those_for_lower_ones(levels_rig: _Rig) -> None:
    # Given a process that calls the bucket all the time, for bodies of the highest level that no lease covers
    rig = levels_rig
    await rig.start()
    await taken_by_another(rig, 800)
    rig.clock.advance(0.001)
    await rig.admission.take(40)
    # When INFO has an allowance, then it may ask at once
    assert rig.admission.wait_seconds(1, Level.INFO) == 0.0
    await rig.admission.take(1, Level.INFO)
    # And not again and again
    assert rig.admission.wait_seconds(1, Level.DEBUG) > 0.0
    with pytest.raises(RateLimitedError):
        await rig.admission.take(1, Level.INFO)


@pytest.mark.parametrize("rate", [1.0, 3.0])
async def test_a_burst_too_small_for_reserves_admits_every_level(rate: float) -> None:
    rig = _Rig(rate=rate, admission_levels=True)
    await rig.start()
    for level in Level:
        rig.clock.advance(60)
        await rig.admission.take(1, level)


async def test_a_low_level_is_asked_for_rarely_while_it_is_kept_out(levels_rig: _Rig) -> None:
    # Given a bucket below DEBUG's reserve that others keep there
    rig = levels_rig
    await rig.start()
    calls, other = len(rig.bucket.asked), MemoryBucket(rig.settings, rig.server)
    other.take(needed=500, wanted=500, process="another")
    for _ in range(1000):
        rig.clock.advance(0.001)
        other.take(needed=1, wanted=1, process="another")
        with contextlib.suppress(RateLimitedError):
            await rig.admission.take(1, Level.DEBUG)
    assert len(rig.bucket.asked) - calls <= 110


async def test_levels_hold_while_the_bucket_is_away(levels_rig: _Rig) -> None:
    # Given a process without the bucket, and three times the rate
    rig = levels_rig
    await rig.start()
    rig.server.is_unavailable = True
    while rig.admission.take_now(1):
        pass
    await _until(lambda: rig.admission.is_local)
    offered, passed = dict.fromkeys(Level, 0), dict.fromkeys(Level, 0)
    for step in range(500):
        rig.clock.advance(0.005)
        for level in (Level.DEBUG, Level.INFO, Level.ERROR if step % 4 == 0 else Level.DEBUG):
            if step >= 300:
                offered[level] += 5
            try:
                await rig.admission.take(5, level)
            except RateLimitedError:
                continue
            if step >= 300:
                passed[level] += 5
    # Then the highest passes, and what is left of the rate goes to the next one
    assert passed[Level.ERROR] == offered[Level.ERROR] == 250
    assert passed[Level.INFO] == pytest.approx(750, abs=30)
    assert passed[Level.DEBUG] <= 20


async def test_without_the_setting_no_level_is_known() -> None:
    rig = _Rig()
    await rig.start()
    await taken_by_another(rig, 900)
    assert rig.admission.admits_all_levels
    assert rig.admission.take_now(20)
    assert rig.admission.refusal(1) is None


def test_a_level_that_the_event_loop_forgets_while_a_thread_reads_it_is_no_error() -> None:
    # Given a process that has called the bucket beside another one
    rig = _Rig()
    looks = [1]  # one was before

    class Forgetful(Admission):
        """The level of the bucket is known at the first of several looks."""

        __slots__ = ()

        @property
        def _fill(self) -> _Fill | None:
            looks.append(1)
            return _Fill(30.0, rig.clock.monotonic(), 500.0, 100) if len(looks) == 1 else None

        @_fill.setter
        def _fill(self, fill: _Fill | None) -> None:
            """Not kept."""

    admission = Forgetful(
        rig.settings, rig.bucket, rig.clock, IngestMetrics(CollectorRegistry(auto_describe=True)), None
    )
    admission.note_rate(1, 1000.0)
    admission._live_processes = 2
    # When the history's thread reads the rate and the tokens, then it gets those of its first look
    looks.clear()
    assert admission.rate(rig.clock.monotonic()) == 500
    looks.clear()
    assert admission.tokens_seen(rig.clock.monotonic()) == 30
