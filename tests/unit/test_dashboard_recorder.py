"""What the writer of the history asks the event log."""

from types import SimpleNamespace
from typing import Any

import pytest

from checks.testbed.waiting import eventually
from ingest.dashboard.recorder import IDENTITY_SECONDS, OFFER_SECONDS, QUIET_SECONDS, Recorder, SystemReaders
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer
from pipeline.control_store.memory_history import MemoryHistory
from pipeline.errors import LogUnavailableError, StoreUnavailableError
from pipeline.follower import ControlSnapshot
from pipeline.health.snapshot import silent_seconds
from pipeline.loops import Loop
from pipeline.names import LoopName
from pipeline.ports.history import COUNTS
from pipeline.ports.log import PartitionPosition
from pipeline.settings import Settings


class Log:
    """A log with two partitions that counts what it is asked."""

    def __init__(self) -> None:
        self.partitions = 2
        self.is_other = False  # another server process has it, which `identity` accepts
        self.identities = 0

    def identity(self) -> Any:
        self.identities += 1
        self.is_other = False
        return SimpleNamespace(partitions=self.partitions)

    def positions(self) -> list[PartitionPosition]:
        if self.is_other:
            raise LogUnavailableError("not the same log as at the last check")
        return [PartitionPosition(partition, 0, 5, 3, 5, 0) for partition in range(2)]


def test_the_logs_identity_is_read_every_few_seconds_and_after_a_failure() -> None:
    log, clock = Log(), ManualClock()
    readers: Any = SimpleNamespace(log=log)
    none: Any = None
    read: list[Any] = []
    recorder = Recorder(
        readers, deltas=none, admission=none, follower=none, settings=Settings(), clock=clock, loop=none,
        on_log_read=read.append,
    )  # fmt: skip
    # When it samples each second, then it reads the positions each time, and the identity once
    for _ in range(int(IDENTITY_SECONDS)):
        assert recorder._positions() == {"lags": [2, 2], "offsets": [3, 3], "consumed": 6}
        clock.advance(1.0)
    assert log.identities == 1
    # Partitions that were added are known after that time: until all answer there is no sample
    log.partitions = 3
    assert recorder._positions() == {}
    assert log.identities == 2
    # And a failure makes it read the identity again
    log.partitions, log.is_other = 2, True
    assert recorder._positions() == {}
    assert recorder._positions() != {}
    assert log.identities == 3
    # Each read is reported with the log that answered for all partitions, or with none
    whole = SimpleNamespace(partitions=2)
    assert read == [whole] * int(IDENTITY_SECONDS) + [None, None, whole]
    recorder.close()


class _Rig:
    """Ingest processes that write one history in memory; their log counts its reads."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer(self.clock)
        self.history = MemoryHistory(self.server)
        self.reads: list[str] = []
        self.cut_off: set[str] = set()  # processes that can't reach the log

    def process(self, name: str) -> Recorder:
        log: Any = Log()
        positions = log.positions

        def counted() -> list[PartitionPosition]:
            self.reads.append(name)
            if name in self.cut_off:
                raise LogUnavailableError("the event log (Redis) can't be reached")
            return list(positions())

        log.positions = counted
        none: Any = None
        return Recorder(
            SystemReaders(self.history, log), deltas=none, admission=none, follower=none, settings=Settings(),
            clock=self.clock, loop=none,
        )  # fmt: skip

    def second(self, recorder: Recorder, name: str) -> None:
        recorder._record(dict.fromkeys(COUNTS, 0), 1.0, {"by": name})

    def writers(self) -> list[str]:
        return [entry.sample["by"] for entry in self.history.since("", entries_max=100)]


def test_one_process_writes_the_history_and_another_follows_when_it_ends() -> None:
    rig = _Rig()
    one, two = rig.process("one"), rig.process("two")
    # When two processes write their seconds, the second one just before the next of the first
    for _ in range(5):
        rig.second(one, "one")
        rig.clock.advance(0.95)
        rig.second(two, "two")
        rig.clock.advance(0.05)
    # Then one of them writes an entry a second and reads the log, after a first second in which both try
    assert rig.writers() == ["one"] + ["two"] * 5
    assert rig.reads == ["one", "two", "one", "two", "two", "two", "two"]
    # When that one ends, then the other one writes in the first second in which it sees no new entry
    before = len(rig.writers())
    for _ in range(4):
        rig.second(one, "one")
        rig.clock.advance(1.0)
    assert rig.writers()[before:] == ["one"] * 3
    for recorder in (one, two):
        recorder.close()


def _seconds(rig: _Rig, number: int, **recorders: Recorder) -> list[tuple[str, bool]]:
    """Let each process write its seconds, one a little after the other. Returns the new entries: by whom, with lags."""
    before = len(rig.writers())
    for _ in range(number):
        for name, recorder in recorders.items():
            rig.second(recorder, name)
            rig.clock.advance(0.1)
        rig.clock.advance(1.0 - 0.1 * len(recorders))
    entries = list(rig.history.since("", entries_max=1000))[before:]
    return [(entry.sample["by"], "lags" in entry.sample) for entry in entries]


def test_a_writer_that_can_not_reach_the_log_hands_over_to_a_process_that_can() -> None:
    # Given two processes, of which one writes
    rig = _Rig()
    one, two = rig.process("one"), rig.process("two")
    assert _seconds(rig, 3, one=one, two=two) == [("one", True)] * 3
    # When only that one loses the log, then the other one writes in the same second, and goes on alone
    rig.cut_off.add("one")
    rig.reads.clear()
    assert _seconds(rig, 3, one=one, two=two) == [("two", True)] * 3
    assert rig.reads == ["one", "two", "two", "two"]
    # When none of them has the log, then one entry is missing, and one of them writes those after it
    rig.cut_off.add("two")
    assert _seconds(rig, 4, one=one, two=two) == [("one", False)] * 3
    # When the other one has it again, then it writes after some seconds
    rig.cut_off.remove("two")
    found = _seconds(rig, int(OFFER_SECONDS) + 1, one=one, two=two)
    assert found[-2:] == [("two", True)] * 2
    assert len(found) >= OFFER_SECONDS
    for recorder in (one, two):
        recorder.close()


def test_a_process_alone_writes_without_the_log() -> None:
    # Given a process that can't reach the log
    rig = _Rig()
    rig.cut_off.add("one")
    one = rig.process("one")
    # Then it leaves one entry in many seconds to others, and no more
    assert _seconds(rig, int(OFFER_SECONDS) + 3, one=one) == [("one", False)] * (int(OFFER_SECONDS) + 1)
    # And it writes each second once it has the log
    rig.cut_off.clear()
    assert _seconds(rig, int(OFFER_SECONDS) + 3, one=one) == [("one", True)] * (int(OFFER_SECONDS) + 3)
    one.close()


def test_the_process_that_takes_over_adds_its_counts_once() -> None:
    # Given two processes, of which the second one leaves the entries to the first
    rig = _Rig()
    one, two = rig.process("one"), rig.process("two")
    counts = dict.fromkeys(COUNTS, 1)
    for _ in range(3):
        for recorder in (one, two):
            recorder._record(counts, 1.0, {})
        rig.clock.advance(1.0)
    # When the first one ends, and the second one writes, too
    for _ in range(3):
        two._record(counts, 1.0, {})
        rig.clock.advance(1.0)
    # Then the totals are those of all their seconds
    [*_, last] = rig.history.since("", entries_max=100)
    assert last.counts == (3 + 3 + 3,) * len(COUNTS)


def test_a_second_that_fails_or_is_late_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a thread whose first second fails as nobody has foreseen, and whose second one takes ten
    rig, clock = _Rig(), ManualClock()
    recorder = rig.process("one")
    recorder._clock, recorder._loop = clock, Loop(LoopName.HISTORY, clock)
    began, written = clock.monotonic(), list[tuple[float, float]]()

    def wait(seconds: float) -> bool:
        clock.advance(max(0.0, seconds))
        return len(written) >= 5

    def write(seconds: float) -> None:
        written.append((clock.monotonic() - began, seconds))
        if len(written) == 1:
            raise ZeroDivisionError
        if len(written) == 2:
            clock.advance(10.0)

    monkeypatch.setattr(recorder._stopping, "wait", wait)
    monkeypatch.setattr(recorder, "_write", write)
    # When it runs, then it goes on, and those that it missed are one
    recorder._run()
    assert written == [(1.0, 1.0), (2.0, 1.0), (12.0, 10.0), (13.0, 1.0), (14.0, 1.0)]


def test_a_second_of_history_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process alone
    rig = _Rig()
    recorder = rig.process("one")
    calls: list[str] = []
    add_and_read, content = rig.history.add_and_read, rig.server.content

    def counted_history(*arguments: Any, **named: Any) -> Any:
        calls.append("history")
        return add_and_read(*arguments, **named)

    def counted_content() -> Any:
        calls.append("server")
        return content()

    monkeypatch.setattr(rig.history, "add_and_read", counted_history)
    monkeypatch.setattr(rig.server, "content", counted_content)
    # When it writes, then it asks the store once, and also after an outage and after a late second
    for pause in (1.0, 1.2, 0.8, 1.0):
        calls.clear()
        rig.second(recorder, "one")
        assert calls.count("history") == 1
        assert set(calls) == {"history", "server"}
        rig.clock.advance(pause)
    rig.server.is_unavailable = True
    rig.second(recorder, "one")
    rig.server.is_unavailable = False
    rig.clock.advance(1.0)
    rig.second(recorder, "one")
    assert rig.writers() == ["one"] * 4  # the second after the late one had one already
    recorder.close()


def test_the_control_workers_queue_is_read_only_while_the_controller_is_silent() -> None:
    # Given a process that follows a controller
    rig, log = _Rig(), Log()
    asked: list[int] = []

    def waiting() -> int:
        asked.append(3)
        return 3

    readers: Any = SystemReaders(rig.history, log, waiting)  # type: ignore[arg-type]
    settings = Settings()
    ages: list[float | None] = [silent_seconds(settings.regulate_seconds)]
    newest = SimpleNamespace(controller_age_seconds=lambda _now: ages[-1])
    follower: Any = SimpleNamespace(newest=newest)
    none: Any = None
    recorder = Recorder(
        readers, deltas=none, admission=none, follower=follower, settings=settings, clock=rig.clock, loop=none
    )

    def second() -> int | None:
        rig.clock.advance(1.0)
        rig.second(recorder, "one")
        return recorder.outlook(rig.clock.monotonic()).ticks_waiting

    # While it publishes, nothing is asked
    assert (second(), asked) == (None, [])
    # When it is silent, or has never published, then health knows how many tasks wait
    for age in (silent_seconds(settings.regulate_seconds) + 0.1, None):
        ages.append(age)
        assert second() == 3

    # And nothing if it can't be read
    def fails() -> int:
        raise StoreUnavailableError

    recorder._readers = SystemReaders(rig.history, log, fails)  # type: ignore[arg-type]
    assert second() is None
    # And so it does of the store's memory, at whose limit no history is written
    follower.problem = None
    recorder._readers = SystemReaders(rig.history, log, waiting, lambda: (7, 9))  # type: ignore[arg-type]
    assert second() == 3
    assert recorder.outlook(rig.clock.monotonic()).store_memory == (7, 9)
    rig.server.is_unavailable = True
    assert second() is None
    assert recorder.outlook(rig.clock.monotonic()).store_memory == (7, 9)
    follower.problem = "no answer"
    assert second() is None
    assert recorder.outlook(rig.clock.monotonic()).store_memory is None
    follower.problem = None
    rig.server.is_unavailable = False
    ages.append(0.0)
    assert second() is None
    assert recorder.outlook(rig.clock.monotonic()).store_memory is None
    ages.append(None)
    # Nor is it asked while the store is unavailable
    recorder._readers = readers
    rig.server.is_unavailable = True
    before = len(asked)
    assert second() is None
    assert len(asked) == before
    recorder.close()


def test_it_writes_without_an_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process whose second is short, and no event loop
    monkeypatch.setattr("ingest.dashboard.recorder.PERIOD_SECONDS", 0.01)
    clock, none = SystemClock(), None
    deltas: Any = SimpleNamespace(take=lambda: dict.fromkeys(COUNTS, 1))
    rig = _Rig()
    rig.history = MemoryHistory(MemoryServer(clock))
    readers: Any = SystemReaders(rig.history, Log())  # type: ignore[arg-type]
    admission: Any = SimpleNamespace(rate=lambda _: 200.0, tokens_seen=lambda _: 6, is_quiet=True)
    unavailable: Any = SimpleNamespace(newest=none, problem="it does not answer")
    recorder = Recorder(
        readers, deltas=deltas, admission=admission, follower=unavailable, settings=Settings(), clock=clock,
        loop=Loop(LoopName.HISTORY, clock),
    )  # fmt: skip
    # When it is started, then it writes, and shows what it saw
    recorder.start()
    eventually(lambda: len(rig.history.since("", entries_max=10)) >= 2 and len(recorder.local) >= 2)
    assert recorder.outlook(clock.monotonic()).traffic is not None
    assert admission.is_quiet is False
    # And it ends
    recorder.close()
    eventually(lambda: not recorder._thread.is_alive())


@pytest.mark.parametrize(("problem", "is_shown"), [(None, True), ("it does not answer", False), ("", False)])
def test_a_state_is_shown_while_the_follower_reads_it(problem: str | None, is_shown: bool) -> None:
    # Given a process that has read a state
    clock = ManualClock()
    state = MemoryControlStore(Settings(), MemoryServer(clock)).state()
    follower: Any = SimpleNamespace(newest=ControlSnapshot(state, clock.monotonic(), None), problem=problem)
    admission: Any = SimpleNamespace(rate=lambda _: 200.0, tokens_seen=lambda _: 6)
    none: Any = None
    recorder = Recorder(
        none, deltas=none, admission=admission, follower=follower, settings=Settings(), clock=clock, loop=none
    )
    # When the next read is not answered, then the sample has no breaker: it may be another one by now
    assert ("breaker" in recorder._own_view()) is is_shown


def test_a_process_without_requests_for_seconds_is_quiet() -> None:
    # Given a process that has counted a response
    clock, none = ManualClock(), None
    admission: Any = SimpleNamespace(is_quiet=False)
    absent: Any = none
    recorder = Recorder(
        absent, deltas=absent, admission=admission, follower=absent, settings=Settings(), clock=clock, loop=absent
    )
    nothing = dict.fromkeys(COUNTS, 0)
    recorder._note_quiet(nothing | {"refused": 1})
    # Then it is quiet after some seconds, and not from the next response on
    found = []
    for counts in (nothing, nothing, nothing | {"invalid": 1}, nothing):
        clock.advance(QUIET_SECONDS / 2)
        recorder._note_quiet(counts)
        found.append(admission.is_quiet)
    assert found == [False, True, False, False]


def test_a_lease_beside_a_full_bucket_is_no_more_than_its_capacity() -> None:
    # Given a full bucket of 200 tokens, and a lease of 6
    admission: Any = SimpleNamespace(rate=lambda _: 200.0, tokens_seen=lambda _: 206)
    none: Any = None
    follower: Any = SimpleNamespace(newest=None)
    recorder = Recorder(
        none, deltas=none, admission=admission, follower=follower, settings=Settings(), clock=ManualClock(), loop=none
    )
    # Then the charts have what the card has
    assert recorder._own_view() == {"rate": 200.0, "tokens": 200}
    recorder.close()
