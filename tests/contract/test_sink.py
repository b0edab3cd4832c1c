"""What every event sink and offset store must do: run against memory, PostgreSQL and files.

The tests with `ids_bench` are for sinks that compare event ids, and have columns that can't hold every text.
"""

import base64
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from checks.testbed.database import ask
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS
from pipeline.errors import FencedError, OffsetConflictError, PoisonedError
from pipeline.ports.event_sink import EventSink, StoredPosition, StoreResult
from pipeline.ports.log import record_digest
from pipeline.ports.offset_store import OffsetStore
from pipeline.settings import Settings
from pipeline.sink.jsonl import JsonlSink
from pipeline.sink.memory import MemoryDatabase, MemorySink
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from support.archive import committed_events, committed_letters
from support.control import eventually
from support.records import RECEIVED_AT_MS, batch, new_log_id, nothing, numbered_batch, record

LOG: Final = new_log_id()


class Sink(EventSink[Any], OffsetStore, Protocol):
    """An event sink that is also the store of its offsets."""


class Bench(Protocol):
    """One storage, with as many sinks as a test wants, and a look at what it holds."""

    settings: Settings

    def sink(self) -> Sink: ...

    def events(self) -> dict[str, tuple[str, str, int, int]]:
        """event_id -> message, log_id, partition, offset."""

    def letters(self) -> dict[tuple[str, int, int], bytes]:
        """(log_id, partition, offset) -> raw record."""

    def conflicts(self) -> set[int]:
        """Offsets of the letters with the reason `conflict`."""


class MemoryBench:
    def __init__(self) -> None:
        self.settings = Settings(poison_run_records_max=5, poison_ratio_max=0.5, poison_condemned_records_max=2)
        self._store = MemoryDatabase()

    def sink(self) -> Sink:
        return MemorySink(self.settings, self._store)

    def events(self) -> dict[str, tuple[str, str, int, int]]:
        return {
            event_id: (event.message, *self._store.places[event_id]) for event_id, event in self._store.events.items()
        }

    def letters(self) -> dict[tuple[str, int, int], bytes]:
        return {place: letter.raw for place, letter in self._store.letters.items()}

    def conflicts(self) -> set[int]:
        return {offset for (_, _, offset), letter in self._store.letters.items() if letter.reason == "conflict"}


class PostgresBench:
    def __init__(self, database_url: str, stack: contextlib.ExitStack) -> None:
        self.settings = Settings(
            database_url=database_url, poison_run_records_max=5, poison_ratio_max=0.5, poison_condemned_records_max=2,
            sink_call_seconds_max=PATIENT_SINK_SECONDS, sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
        )  # fmt: skip
        migrate(self.settings)
        self._stack = stack

    def sink(self) -> Sink:
        return self._stack.enter_context(contextlib.closing(PostgresSink(self.settings)))

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        return ask(self.settings.database_url, sql)

    def events(self) -> dict[str, tuple[str, str, int, int]]:
        rows = self._ask("SELECT event_id, message, log_id, log_partition, log_offset FROM log_events")
        return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}

    def letters(self) -> dict[tuple[str, int, int], bytes]:
        rows = self._ask("SELECT log_id, log_partition, log_offset, raw FROM dead_letters")
        return {(row[0], row[1], row[2]): bytes(row[3]) for row in rows}

    def conflicts(self) -> set[int]:
        return {offset for (offset,) in self._ask("SELECT log_offset FROM dead_letters WHERE reason = 'conflict'")}


class JsonlBench:
    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.settings = Settings(
            event_sink_url=f"file://{folder}",
            poison_run_records_max=5,
            poison_ratio_max=0.5,
            poison_condemned_records_max=2,
        )
        self._folder = folder
        self._stack = stack
        self.sink().probe()

    def sink(self) -> Sink:
        return self._stack.enter_context(contextlib.closing(JsonlSink(self.settings)))

    def events(self) -> dict[str, tuple[str, str, int, int]]:
        return {
            line["record"]["eventId"]: (
                line["record"]["message"], line["logId"], line["logPartition"], line["logOffset"]
            )
            for line in committed_events(self._folder)
        }  # fmt: skip

    def letters(self) -> dict[tuple[str, int, int], bytes]:
        found: dict[tuple[str, int, int], bytes] = {}
        for line in committed_letters(self._folder):
            place = (line["logId"], line["logPartition"], line["logOffset"])
            if place in found:  # of a log that lost its tail
                found[f"{place[0]} before {len(found)}", place[1], place[2]] = found[place]
            found[place] = base64.b64decode(line["raw"])
        return found

    def conflicts(self) -> set[int]:
        return set()


@pytest.fixture(params=["memory", "postgres", "by day", "jsonl"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from _bench(request)


@pytest.fixture(params=["memory", "postgres", "by day"])
def ids_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from _bench(request)


def _bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        yield MemoryBench()
        return
    if request.param == "jsonl":
        with contextlib.ExitStack() as stack:
            yield JsonlBench(request.getfixturevalue("tmp_path"), stack)
        return
    with contextlib.ExitStack() as stack:
        url = "day_database_url" if request.param == "by day" else "database_url"
        yield PostgresBench(request.getfixturevalue(url), stack)


def test_a_batch_is_stored_with_its_offset(bench: Bench) -> None:
    # Given a sink that knows nothing of this log
    sink = bench.sink()
    assert sink.stored_offsets(LOG) == {}
    # When two batches of one partition and one of another are stored
    first = sink.store(LOG, 1, 0, numbered_batch(0, 3), before_commit=nothing)
    sink.store(LOG, 1, 3, numbered_batch(3, 2), before_commit=nothing)
    sink.store(LOG, 2, 0, numbered_batch(100, 1), before_commit=nothing)
    # Then each event is there with its place, and the offsets are those of the next records
    assert first == StoreResult(stored=3)
    assert bench.events() == {
        **{f"event-{number:06d}": (f"message {number}", LOG, 1, number) for number in range(5)},
        "event-000100": ("message 100", LOG, 2, 100),
    }
    assert sink.stored_offsets(LOG) == {1: 5, 2: 101}
    assert sink.stored_offsets(new_log_id()) == {}


def test_the_last_record_is_kept_beside_the_offset(bench: Bench) -> None:
    # Given a sink that knows nothing of a partition
    sink = bench.sink()
    assert sink.stored_position(LOG, 0) is None
    # When batches are stored, as they are and by PostgreSQL's slow path
    first, second = numbered_batch(0, 3), numbered_batch(2, 4)
    sink.store(LOG, 0, 0, first, before_commit=nothing)
    assert sink.stored_position(LOG, 0) == StoredPosition(3, record_digest(first.values[-1]))
    sink.store(LOG, 0, 3, replace(second, offset=3), before_commit=nothing)
    # Then the digest of the last one is there
    assert bench.sink().stored_position(LOG, 0) == StoredPosition(7, record_digest(second.values[-1]))
    assert sink.stored_position(LOG, 1) is None
    # And a batch that is rolled back changes nothing
    with pytest.raises(OffsetConflictError):
        sink.store(LOG, 0, 3, numbered_batch(30, 3), before_commit=nothing)
    assert sink.stored_position(LOG, 0) == StoredPosition(7, record_digest(second.values[-1]))


def test_a_moved_offset_is_a_conflict_and_stores_nothing(bench: Bench) -> None:
    # Given a partition stored up to 3
    sink, other = bench.sink(), bench.sink()
    sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing)
    # When somebody stores what he read before that
    with pytest.raises(OffsetConflictError):
        other.store(LOG, 0, 0, numbered_batch(10, 3), before_commit=nothing)
    # Then nothing of it is there, and his sink works on
    assert len(bench.events()) == 3
    assert other.store(LOG, 0, 3, numbered_batch(3, 1), before_commit=nothing) == StoreResult(stored=1)


def test_what_was_encoded_ahead_is_stored_like_what_was_not(bench: Bench) -> None:
    # Given a batch with a record that is no event, encoded on another thread
    sink = bench.sink()
    sink.store(LOG, 0, 0, batch(0, [record(1)]), before_commit=nothing)
    values = [record(2), b"no event", record(3), record(4)]
    with ThreadPoolExecutor(1) as helper:
        encoded = helper.submit(sink.encode, LOG, 0, batch(1, values)).result()
    # When it is stored
    result = sink.store(LOG, 0, 1, batch(1, values), before_commit=nothing, encoded=encoded)
    # Then it is what storing it at once would have given
    assert result == StoreResult(stored=3, dead_lettered=1)
    assert bench.events()["event-000003"] == ("message 3", LOG, 0, 3)
    assert bench.letters() == {(LOG, 0, 2): b"no event"}
    assert sink.stored_offsets(LOG) == {0: 5}


def test_what_was_encoded_for_another_log_is_encoded_anew(bench: Bench) -> None:
    # Given a batch that was encoded before the log turned out to be another one
    sink = bench.sink()
    values = batch(0, [record(1), b"no event"])
    encoded = sink.encode(LOG, 0, values)
    other = new_log_id()
    # When it is stored for the new one
    sink.store(other, 2, 0, values, before_commit=nothing, encoded=encoded)
    # Then its rows and letters say so
    assert bench.events()["event-000001"] == ("message 1", other, 2, 0)
    assert bench.letters() == {(other, 2, 1): b"no event"}


def test_a_declared_gap_moves_the_offset_over_it(bench: Bench) -> None:
    # Given a partition stored up to 3, and a log that goes on with 8
    sink = bench.sink()
    sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing)
    # When what follows is stored
    sink.store(LOG, 0, 3, batch(8, [record(8)], gap_from=2), before_commit=nothing)
    # Then the offset is behind it
    assert sink.stored_offsets(LOG) == {0: 9}


def test_a_repeat_is_stored_once(ids_bench: Bench) -> None:
    # Given a stored event
    sink = ids_bench.sink()
    sink.store(LOG, 0, 0, batch(0, [record(1, attributes={"a": 1})]), before_commit=nothing)
    # When the same comes again, received later, beside new ones and twice in one batch
    again = record(1, attributes={"a": 1}, received_at_ms=RECEIVED_AT_MS + 5)
    result = sink.store(LOG, 0, 1, batch(1, [record(2), again, record(3), record(3), again]), before_commit=nothing)
    # Then it is counted, and the first one stands
    assert result == StoreResult(stored=2, repeated=3)
    assert ids_bench.events()["event-000001"] == ("message 1", LOG, 0, 0)
    assert ids_bench.events()["event-000003"] == ("message 3", LOG, 0, 3)
    assert sink.stored_offsets(LOG) == {0: 6}


@pytest.mark.parametrize(
    "other",
    [
        {"message": "another"},
        {"severity": "WARN"},
        {"source": "elsewhere"},
        {"correlation_id": "somebody-else"},
        {"timestamp": 1},
        {"attributes": {"a": 2}},
        {"attributes": {"a": True}},
        {"attributes": {}},
        {"attributes": None},
    ],
    ids=str,
)
def test_an_id_with_other_content_is_kept_as_a_dead_letter(ids_bench: Bench, other: dict[str, Any]) -> None:
    # Given a stored event
    sink = ids_bench.sink()
    sink.store(LOG, 0, 0, batch(0, [record(1, attributes={"a": 1})]), before_commit=nothing)
    # When its id comes with other content, in a later batch
    fields = {"attributes": {"a": 1}, **other}
    later = record(1, **fields)
    result = sink.store(LOG, 0, 1, batch(1, [later, record(2)]), before_commit=nothing)
    # Then the first one stands, and the later one is kept as it was
    assert result == StoreResult(stored=1, conflicting=1)
    assert ids_bench.events()["event-000001"] == ("message 1", LOG, 0, 0)
    assert ids_bench.letters() == {(LOG, 0, 1): later}
    assert ids_bench.conflicts() == {1}


def test_content_that_postgresql_calls_the_same_is_a_repeat(ids_bench: Bench) -> None:
    # Given a stored event
    sink = ids_bench.sink()
    sink.store(LOG, 0, 0, batch(0, [record(1, attributes={"a": 1, "b": 2})]), before_commit=nothing)
    # When it comes again with its attributes in another order, and a number written in another way
    result = sink.store(LOG, 0, 1, batch(1, [record(1, attributes={"b": 2.0, "a": 1})]), before_commit=nothing)
    # Then it is a repeat
    assert result == StoreResult(repeated=1)
    assert ids_bench.letters() == {}


def test_an_event_that_has_the_time_of_its_receipt_is_a_repeat_when_it_comes_later(ids_bench: Bench) -> None:
    # Given an event without a time of its own: ingest gives it that of its receipt, or some milliseconds later
    sink = ids_bench.sink()
    first, later = RECEIVED_AT_MS, RECEIVED_AT_MS + 2_000
    sent = record(1, received_at_ms=first, timestamp=first + 3)
    sink.store(LOG, 0, 0, batch(0, [sent]), before_commit=nothing)
    # When it comes again, then it is a repeat, also within one batch
    again = [record(1, received_at_ms=later, timestamp=later + shift) for shift in (0, 3)]
    assert sink.store(LOG, 0, 1, batch(1, again), before_commit=nothing) == StoreResult(repeated=2)
    # But other content is no repeat, and neither is an event with a time of its own
    others = [
        record(1, received_at_ms=later, timestamp=later, message="another"),
        record(1, received_at_ms=later, timestamp=later - 1),
    ]
    assert sink.store(LOG, 0, 3, batch(3, others), before_commit=nothing) == StoreResult(conflicting=2)
    assert ids_bench.conflicts() == {3, 4}


def test_conflicts_are_no_poison(ids_bench: Bench) -> None:
    # Given stored events
    sink = ids_bench.sink()
    sink.store(LOG, 0, 0, numbered_batch(0, 20), before_commit=nothing)
    # When far more conflicts come than the limit of poison, in one batch and in batches of one
    others = [record(number, message="changed before it was sent again") for number in range(20)]
    result = sink.store(LOG, 0, 20, batch(20, others), before_commit=nothing)
    assert result == StoreResult(conflicting=20)
    for offset, value in enumerate(others, 40):
        assert sink.store(LOG, 0, offset, batch(offset, [value]), before_commit=nothing) == StoreResult(conflicting=1)
    # Then all are kept, and none counts: as many broken records as are allowed still pass
    assert ids_bench.conflicts() == set(range(20, 60))
    result = sink.store(LOG, 0, 60, batch(60, [b"broken"] * 5), before_commit=nothing)
    assert result == StoreResult(dead_lettered=5)


def test_of_two_contents_in_one_batch_the_first_stands(ids_bench: Bench) -> None:
    # Given a batch with one id three times, the last two with other contents, before a record that sorts before it
    values = [record(5), record(5, message="second"), record(5, message="third"), record(4)]
    # When it is stored
    result = ids_bench.sink().store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    # Then the first is there, and the others are dead letters
    assert result == StoreResult(stored=2, conflicting=2)
    assert ids_bench.events()["event-000005"] == ("message 5", LOG, 0, 0)
    assert ids_bench.conflicts() == {1, 2}


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not JSON",
        b'{"eventId": "no-more-than-this"}',
        b"\xff\xfe",
        record(1).replace(b'"message 1"', b"5"),
        record(1).replace(b'"message 1"', b'"\xff"'),
        record(1).replace(b'"message 1"', b'"\\ud800"'),
        record(1, attributes={"a": 1}).replace(b'"a":1', b'"a":[1]'),
        b"[" * 5000,
    ],
    ids=lambda value: repr(value[:40]),
)
def test_a_broken_record_becomes_a_dead_letter_alone(bench: Bench, broken: bytes) -> None:
    _becomes_a_dead_letter_alone(bench, broken)


@pytest.mark.parametrize(
    "broken",
    [
        record(1).replace(b'"message 1"', b'"a\\u0000b"'),
        record(1, attributes={"a": 1}).replace(b'"a":1', b'"\\u0000":1'),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_a_text_that_no_column_can_hold_becomes_a_dead_letter_alone(ids_bench: Bench, broken: bytes) -> None:
    _becomes_a_dead_letter_alone(ids_bench, broken)


def _becomes_a_dead_letter_alone(bench: Bench, broken: bytes) -> None:
    # Given a batch with one broken record among good ones
    values = [record(10), record(11), broken, record(12)]
    # When it is stored
    sink = bench.sink()
    result = sink.store(LOG, 3, 20, batch(20, values), before_commit=nothing)
    # Then the others are stored, and it is kept as it was
    assert result == StoreResult(stored=3, dead_lettered=1)
    assert sorted(bench.events()) == ["event-000010", "event-000011", "event-000012"]
    assert bench.letters() == {(LOG, 3, 22): broken}
    assert sink.stored_offsets(LOG) == {3: 24}


def test_a_dead_letter_at_the_place_of_an_earlier_one_loses_neither(bench: Bench) -> None:
    # Given two dead letters, and a log that lost its tail: the partition is set back
    sink = bench.sink()
    sink.store(LOG, 1, 0, batch(0, [record(0), b"broken", b"the same"]), before_commit=nothing)
    sink.store(LOG, 1, 3, batch(1, []), before_commit=nothing)
    # When another record at the first one's place is refused too, and the second one once more
    again = sink.store(LOG, 1, 1, batch(1, [b"another", b"the same"]), before_commit=nothing)
    # Then all three are kept, each once
    assert again == StoreResult(dead_lettered=2)
    letters = bench.letters()
    assert sorted(letters.values()) == [b"another", b"broken", b"the same"]
    assert (letters[LOG, 1, 1], letters[LOG, 1, 2]) == (b"another", b"the same")
    # And where the partition is set back a second time
    sink.store(LOG, 1, 3, batch(1, []), before_commit=nothing)
    sink.store(LOG, 1, 1, batch(1, [b"a third", record(2)]), before_commit=nothing)
    assert sorted(bench.letters().values()) == [b"a third", b"another", b"broken", b"the same"]


def test_what_fails_before_the_commit_leaves_nothing(bench: Bench) -> None:
    # Given a fence that is closed
    def fenced() -> None:
        raise FencedError

    sink = bench.sink()
    # When a batch with a broken record is stored
    with pytest.raises(FencedError):
        sink.store(LOG, 0, 0, batch(0, [record(1), b"broken"]), before_commit=fenced)
    # Then nothing of it is there, and the sink works on
    assert bench.events() == {}
    assert bench.letters() == {}
    assert sink.stored_offsets(LOG) == {}
    assert sink.store(LOG, 0, 0, batch(0, [record(1)]), before_commit=nothing) == StoreResult(stored=1)


def test_before_commit_sees_nothing_committed(bench: Bench) -> None:
    # Given a look at the storage from outside, just before the commit
    seen: list[object] = []
    bench.sink().store(LOG, 0, 0, numbered_batch(0, 2), before_commit=lambda: seen.append(bench.events()))
    # Then there is nothing yet
    assert seen == [{}]


def test_one_drainer_for_each_partition(bench: Bench) -> None:
    # Given a sink that holds a partition
    one, two = bench.sink(), bench.sink()
    assert not one.holds(LOG, 0)
    assert one.acquire(LOG, 0)
    assert (one.holds(LOG, 0), one.holds(LOG, 1), two.holds(LOG, 0)) == (True, False, False)
    # Then another can't have it, but another partition, and the same one of another log
    assert not two.acquire(LOG, 0)
    assert two.acquire(LOG, 1)
    assert two.acquire(new_log_id(), 0)
    # And it stays with the first, who may ask again, until it is given up once
    assert one.acquire(LOG, 0)
    one.release(LOG, 0)
    one.release(LOG, 0)
    assert not one.holds(LOG, 0)
    assert two.acquire(LOG, 0)
    # And giving up what one does not hold takes it from nobody
    one.release(LOG, 0)
    assert not one.acquire(LOG, 0)


def test_it_is_known_which_partitions_have_a_drain(bench: Bench) -> None:
    # Given partitions that two sinks hold, with locks of either sign, and one of another log
    one, two, watcher = bench.sink(), bench.sink(), bench.sink()
    held = [0, 3, *range(10, 20)]
    for partition in held:
        assert (one if partition % 2 else two).acquire(LOG, partition)
    assert one.acquire(new_log_id(), 1)
    # Then a third one sees them, and no others
    assert watcher.drained(LOG, range(20)) == set(held)
    assert watcher.drained(LOG, [1, 3]) == {3}
    assert watcher.drained(LOG, []) == set()
    # And those that are given up are seen no more, in whatever way that happens
    two.release(LOG, 0)
    one.close()
    eventually(lambda: watcher.drained(LOG, range(20)) == set(range(10, 20, 2)))


def test_a_closed_sink_holds_nothing_and_can_be_used_again(bench: Bench) -> None:
    # Given a sink that holds a partition
    one, two = bench.sink(), bench.sink()
    assert one.acquire(LOG, 0)
    # When it is closed, twice
    one.close()
    one.close()
    assert not one.holds(LOG, 0)
    # Then another may have it, as soon as the server has seen the end
    eventually(lambda: two.acquire(LOG, 0))
    # And the closed one connects anew
    assert not one.acquire(LOG, 0)


def test_too_many_dead_letters_in_a_batch_roll_it_back(bench: Bench) -> None:
    # Given more broken records than both the number and the ratio allow
    values = [record(1), *[b"broken"] * 6]
    sink = bench.sink()
    # Then the batch is refused as a whole
    with pytest.raises(PoisonedError):
        sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    assert bench.events() == {}
    assert bench.letters() == {}
    assert sink.stored_offsets(LOG) == {}


def test_many_dead_letters_among_more_good_records_are_no_poison(bench: Bench) -> None:
    # Given more broken records than the number allows, but not than the ratio does
    values = [*[b"broken"] * 6, *[record(number) for number in range(6)]]
    # Then the batch is stored
    result = bench.sink().store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    assert result == StoreResult(stored=6, dead_lettered=6)


def test_a_trickle_of_dead_letters_is_poison_too(bench: Bench) -> None:
    # Given batches of one broken record each, up to what is allowed
    sink = bench.sink()
    for offset in range(5):
        sink.store(LOG, 0, offset, batch(offset, [b"broken"]), before_commit=nothing)
    # Then the next one is poison, since no batch before it was better
    with pytest.raises(PoisonedError):
        sink.store(LOG, 0, 5, batch(5, [b"broken"]), before_commit=nothing)
    assert sink.stored_offsets(LOG) == {0: 5}


def test_a_good_batch_ends_a_run_of_dead_letters(bench: Bench) -> None:
    # Given batches of one broken record each, up to what is allowed, and a good one
    sink = bench.sink()
    for offset in range(5):
        sink.store(LOG, 0, offset, batch(offset, [b"broken"]), before_commit=nothing)
    sink.store(LOG, 0, 5, batch(5, [record(5)]), before_commit=nothing)
    # Then the next broken one is a dead letter
    result = sink.store(LOG, 0, 6, batch(6, [b"broken"]), before_commit=nothing)
    assert result == StoreResult(dead_lettered=1)


def test_records_that_make_storing_fail_are_poison_whatever_is_stored_between_them(bench: Bench) -> None:
    # Given records that are kept as dead letters since storing them fails, with good ones between
    sink = bench.sink()
    why, sqlstate = "relation audit does not exist", "42P01"
    for first in (0, 10):
        sink.condemn(LOG, 0, first, batch(first, [record(first)]), why=why, sqlstate=sqlstate, before_commit=nothing)
        sink.store(LOG, 0, first + 1, numbered_batch(first + 1, 9), before_commit=nothing)
    # When one more comes than may be, then it is kept in the log, and its partition stops
    with pytest.raises(PoisonedError, match="the schema or a trigger, not the data, is suspect: relation audit"):
        sink.condemn(LOG, 0, 20, batch(20, [record(20)]), why=why, sqlstate=sqlstate, before_commit=nothing)
    assert sink.stored_offsets(LOG) == {0: 20}
    assert {offset for _, _, offset in bench.letters()} == {0, 10}
    # And the count begins anew for whoever resumes it
    sink.condemn(LOG, 0, 20, batch(20, [record(20)]), why=why, sqlstate=sqlstate, before_commit=nothing)
    # And another partition has a count of its own
    sink.condemn(LOG, 1, 0, batch(0, [record(30)]), why=why, sqlstate=sqlstate, before_commit=nothing)


def test_probe_writes(bench: Bench) -> None:
    sink = bench.sink()
    sink.probe()
    sink.probe()
