"""The one way in, with a protocol that is none of Sluice's, and without any web framework."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry

from checks.testbed.waiting import WAIT_SECONDS_MAX
from checks.testbed.waiting import eventually_in_loop as until
from ingest.account_counter import AccountCounter
from ingest.accounts import Accounts
from ingest.admission import Admission
from ingest.appender import Appender
from ingest.collect import Collector
from ingest.entrance import Entrance
from ingest.errors import BodyTooLargeError, RateLimitedError, UnsupportedBodyError, error_response
from ingest.framing import declared_coding
from ingest.held_bodies import HeldBodies, HeldBytes
from ingest.types import Batch, Codec, Decode, Headers, Inflate, RequestHead, Response
from pipeline.clock import SystemClock
from pipeline.control_store.memory import MemoryBucket, MemoryServer
from pipeline.errors import SluiceError
from pipeline.event import Event, decode_record, partition_of
from pipeline.flow.refusals import Refused
from pipeline.log.memory import MemoryLog
from pipeline.metrics import IngestMetrics
from pipeline.names import LEVEL_HIGHEST, Level, ProtocolName
from pipeline.settings import Settings

BYTES_MAX = 1000
NOW_MS = 1_700_000_000_000


def words_codec() -> Codec:
    """A toy protocol: each word of a body is an event; it has answers of its own."""

    async def words(body: bytes) -> Batch:
        events = [Event(word, "INFO", word, "words", NOW_MS) for word in body.decode().split()]
        return Batch(events, lambda: Response(204, b"", headers={"x-words": str(len(events))}))

    def decode(head: RequestHead) -> Decode:
        if head.headers.get("content-type") != "text/words":
            raise UnsupportedBodyError("no words")
        return words

    def inflate(headers: Headers) -> Inflate | None:
        return declared_coding(headers.get("content-encoding"), BYTES_MAX)

    def rejected(_head: RequestHead, error: SluiceError) -> Response:
        return Response(error_response(error).status, type(error).__name__.encode())

    return Codec(ProtocolName.GELF, BYTES_MAX, inflate, decode, rejected)


@dataclass
class WordsRequest:
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/words"})
    request_id: str = "r-1"
    target: str = "/words"
    was_read: bool = False
    tally: AccountCounter = field(default_factory=lambda: AccountCounter("198.51.100.1"))
    level_max: Level = LEVEL_HIGHEST

    def identify(self, protocol: ProtocolName | None) -> AccountCounter:
        return self.tally

    async def receive_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        self.was_read = True
        if len(self.body) > bytes_max:
            raise BodyTooLargeError(bytes_max, "bytes")
        held.take(len(self.body))
        return self.body


class Rig:
    def __init__(self, settings: Settings) -> None:
        server, clock, metrics = MemoryServer(), SystemClock(), IngestMetrics(CollectorRegistry())
        self.log = MemoryLog(partitions=settings.log_partitions)
        self.admission = Admission(settings, MemoryBucket(settings, server), clock, metrics)
        self.appender = Appender(self.log, settings, clock, metrics)
        self.held = HeldBodies(BYTES_MAX)
        self.accounts = Accounts(settings, clock)
        entrance = Entrance(self.admission, self.accounts)
        self.collector = Collector(entrance, self.appender, self.held, metrics, clock, traces=False)

    async def start(self) -> "Rig":
        loop = asyncio.get_running_loop()
        self.admission.start(loop)
        self.appender.start(loop)
        await until(lambda: self.appender.status(time.monotonic()).answers and self.admission.available(0) is not None)
        return self

    async def collect(self, request: WordsRequest) -> Response:
        response = await self.collector.collect(words_codec(), request)
        assert self.held.bytes == 0, "whatever became of it, its bytes are given back"
        return response

    def stored(self) -> list[str]:
        batch = self.log.read(0, 0, records_max=100, wait_seconds=0)
        return [] if batch is None else [decode_record(value).message for value in batch.values]


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Rig]]]:
    rigs: list[Rig] = []

    async def run(**changes: float) -> Rig:
        rigs.append(Rig(Settings(**{"log_partitions": 1, "ingest_processes_max": 1} | changes)))  # type: ignore[arg-type]
        return await rigs[-1].start()

    yield run
    for rig in rigs:
        await rig.appender.close(seconds_max=WAIT_SECONDS_MAX)
        rig.admission.close()


Start = Callable[..., Awaitable[Rig]]


async def test_a_protocol_is_a_codec(start: Start) -> None:
    rig = await start()
    response = await rig.collect(WordsRequest(b"one two three"))
    assert (response.status, response.headers) == (204, {"x-words": "3"})
    assert rig.stored() == ["one", "two", "three"]


async def test_many_records_let_other_requests_have_their_turn(start: Start) -> None:
    # Given a body of 20,000 events that is admitted
    rig = await start(rate_max=100_000.0, rate_min=100_000.0)
    turns = []

    async def others() -> None:
        while True:
            turns.append(rig.appender.waiting_events)
            await asyncio.sleep(0)

    async def many(_body: bytes) -> Batch:
        events = [Event("c", "INFO", "m", "s", NOW_MS) for _ in range(20_000)]
        task = asyncio.get_running_loop().create_task(others())
        tasks.append(task)
        return Batch(events, lambda: Response(204, b""))

    tasks: list[asyncio.Task[None]] = []
    codec = replace(words_codec(), decode=lambda _head: many)
    assert (await rig.collector.collect(codec, WordsRequest(b"x"))).status == 204
    tasks[0].cancel()
    # Then others have had turns before the first of them was appended
    assert sum(waiting == 0 for waiting in turns) >= 19


async def test_framing_stands_before_every_codec(start: Start) -> None:
    rig = await start()
    heads = {"content-type": "text/words", "content-encoding": "gzip"}
    assert (await rig.collect(WordsRequest(gzip.compress(b"packed words"), heads))).status == 204
    assert rig.stored() == ["packed", "words"]
    # A body that is too large as it is, or inflated
    assert (await rig.collect(WordsRequest(b"x" * (BYTES_MAX + 1)))).body == b"BodyTooLargeError"
    bomb = WordsRequest(gzip.compress(b"x" * 100_000), heads)
    assert (await rig.collect(bomb)).body == b"BodyTooLargeError"


async def test_what_is_refused_whatever_it_holds_is_not_read(start: Start) -> None:
    rig = await start(rate_max=100.0, rate_min=100.0)
    foreign = WordsRequest(b"one", {"content-type": "text/other"})
    assert (await rig.collect(foreign)).body == b"UnsupportedBodyError"
    # Given a bucket that this process knows to be empty
    while rig.collector.seconds_closed() == 0:
        await rig.collect(WordsRequest(b"word " * 50))
    limited = WordsRequest(b"one")
    assert (await rig.collect(limited)).body == b"RateLimitedError"
    # And a log that is away
    rig.log.stop()
    await until(lambda: rig.appender.blocked() is not None)
    away = WordsRequest(b"one")
    assert (await rig.collect(away)).body == b"LogUnavailableError"
    assert [foreign.was_read, limited.was_read, away.was_read] == [False] * 3
    assert rig.collector.seconds_closed() == float("inf")


async def test_events_of_a_refused_body_are_counted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await start(rate_max=100.0, rate_min=100.0)
    assert (await rig.collect(WordsRequest(b"word " * 150))).status == 204
    response = await rig.collect(WordsRequest(b"word " * 150))
    assert response.body == b"RateLimitedError"
    # A body that was refused unread counts as one event; one that was decoded, as all of its events
    assert rig.collector.refused_beyond_first == 0

    def refusal(_: Admission, count: int, level: Level = LEVEL_HIGHEST) -> RateLimitedError | None:
        return None if count == 1 else RateLimitedError(1.0, quota=1, left=0)

    monkeypatch.setattr(Admission, "refusal", refusal)
    response = await rig.collect(WordsRequest(b"word " * 150))
    assert response.body == b"RateLimitedError"
    assert rig.collector.refused_beyond_first == 149
    assert len(rig.stored()) == 100, "what one read shows"


async def test_a_repeat_pays_for_no_event_that_is_stored(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a partition that takes nothing, and a body with events for both
    rig = await start(log_partitions=2)
    given_back: list[int] = []
    monkeypatch.setattr(Admission, "give_back", lambda _, count: given_back.append(count))
    words = [f"word{number}" for number in range(30)]
    missing = [index for index, word in enumerate(words) if partition_of(word, 2) == 1]
    assert 0 < len(missing) < 30
    rig.log.server.lose_leader(1)
    codec = replace(words_codec(), rejected=lambda _head, error: error_response(error))
    response = await rig.collector.collect(codec, WordsRequest(" ".join(words).encode()))
    # Then the answer says which events are not stored, and their tokens go back
    error = json.loads(response.body)["error"]
    assert (response.status, error["code"], error["unconfirmed"]) == (503, "indeterminate", missing)
    assert given_back == [len(missing)]
    # And so do all tokens of a body of which nothing is stored
    response = await rig.collector.collect(codec, WordsRequest(words[missing[0]].encode()))
    assert json.loads(response.body)["error"]["code"] == "unavailable"
    assert given_back == [len(missing), 1]
    # But not those of a body that may be stored
    rig.log.server.lose_leader()
    rig.log.server.lose_answers()
    response = await rig.collector.collect(codec, WordsRequest(" ".join(words).encode()))
    assert json.loads(response.body)["error"].keys() == {"code", "message"}
    assert given_back == [len(missing), 1]


async def test_a_body_that_was_read_and_refused_counts_with_its_events(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an empty bucket, of which a request only learns after its body was read
    rig = await start(rate_min=1.0, rate_max=1.0)
    assert (await rig.collect(WordsRequest(b"one two three"))).status == 204
    monkeypatch.setattr(rig.collector, "refusal", lambda *_: None)
    request = WordsRequest(b"four five")
    response = await rig.collect(request)
    assert (response.body, request.was_read) == (b"RateLimitedError", True)
    assert request.tally.take_refused() == {"rate": Refused(1, 2)}


async def test_a_client_that_leaves_while_its_records_are_made_pays_for_none(
    start: Callable[..., Awaitable[Rig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.collect.RECORDS_AT_ONCE", 2)
    rig = await start(rate_min=10_000, rate_max=10_000)
    assert (await rig.collect(WordsRequest(b"first"))).status == 204  # from now on it has a lease
    given_back: list[int] = []
    monkeypatch.setattr(Admission, "give_back", lambda _, count: given_back.append(count))
    # Given a body that was admitted, and of which the first records are made
    task = asyncio.create_task(rig.collect(WordsRequest(b"a b c d e f g h")))
    await asyncio.sleep(0)
    # When its client leaves
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Then nothing is stored, and its tokens are there for others
    assert given_back == [8]
    assert rig.stored() == ["first"]
