"""Drains between the real logs, the real control store and PostgreSQL, with faults in between."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from checks.testbed.database import ask, fail_on_insert, stored_ids
from pipeline import wiring
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.drain import drain
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.ports.event_sink import StoreResult
from pipeline.ports.log import EventLog
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.session import Session
from stack.servers import Server
from support.control import eventually
from support.event_logs import patient_log
from support.records import record


@dataclass
class Rig:
    settings: Settings
    ingest: EventLog
    log: EventLog
    sink: PostgresSink

    def append(self, first: int, count: int) -> None:
        for start in range(first, first + count, 500):
            end = min(start + 500, first + count)
            self.ingest.append([(0, record(number)) for number in range(start, end)])

    def drain_up_to(self, offset: int, moved: list[int] | None = None) -> DrainReport:
        """Drain partition 0 until so much is stored, or the run ends for another reason; `moved` gets each offset."""
        reached: list[int] = []

        def on_stored(next_offset: int, _: StoreResult) -> None:
            if moved is not None:
                moved.append(next_offset)
            if next_offset >= offset:
                reached.append(next_offset)

        return drain(
            0,
            log=self.log,
            sink=self.sink,
            fence=wiring.make_offset_fence(self.settings),
            breaker=SinkBreaker(self.settings, wiring.make_control_store(self.settings), SystemClock(), "test"),
            paused=lambda: bool(reached),
            settings=self.settings,
            clock=SystemClock(),
            on_stored=on_stored,
        )


@contextlib.contextmanager
def _rig(settings: Settings) -> Iterator[Rig]:
    migrate(settings)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(patient_log(settings))) for _ in range(2)]
        sink = stack.enter_context(contextlib.closing(PostgresSink(settings)))
        yield Rig(settings, made[0], made[1], sink)


@pytest.fixture(params=["redis", "kafka"])
def rig(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Rig]:
    changed = replace(settings, drain_batch_records_max=300, drain_run_seconds_max=120.0, drain_hard_seconds_max=300.0)
    if request.param == "kafka":
        server: Server = request.getfixturevalue("kafka")
        changed = replace(changed, event_log_url=server.url)
    with _rig(changed) as made:
        yield made


def test_all_that_is_in_the_log_is_stored_once(rig: Rig) -> None:
    # Given a backlog
    rig.append(0, 2500)
    # When it is drained in two runs
    first = rig.drain_up_to(1000)
    assert (first.outcome, first.more) == (DrainOutcome.PAUSED, True)
    rig.append(2500, 10)
    second = rig.drain_up_to(2510)
    # Then each event is stored once, with its place, and the log knows it
    assert first.stored + second.stored == 2510
    assert second.repeated == 0
    rows = ask(rig.settings.database_url, "SELECT event_id, log_offset FROM log_events ORDER BY log_offset")
    assert rows == [(f"event-{number:06d}", number) for number in range(2510)]
    eventually(lambda: rig.ingest.positions()[0].committed == 2510)


def test_another_record_in_place_of_the_last_one_stored_stops_the_partition(rig: Rig) -> None:
    # Given a log that keeps what is stored, and of which 20 are stored
    with _rig(replace(rig.settings, log_trim=False)) as rig:  # noqa: PLR1704
        rig.append(0, 30)
        assert rig.drain_up_to(30).stored == 30
        # When it holds another record there than PostgreSQL remembers (it lost its tail, and grew past it)
        ask(rig.settings.database_url, "UPDATE stored_offsets SET last_record_digest = '\\x00'")
        rig.append(30, 10)
        report = rig.drain_up_to(40)
        # Then nothing more is stored
        assert (report.outcome, report.stored) == (DrainOutcome.LOG_GAP, 0)
        assert "another record at offset 29" in str(report.error)
        # When somebody moves the offset back to where it was cut off, which says nothing of the digest
        ask(rig.settings.database_url, "UPDATE stored_offsets SET next_offset = 25")
        report = rig.drain_up_to(40)
        # Then it goes on from there, and stores nothing twice
        assert (report.stored, report.repeated, report.next_offset) == (10, 5, 40)


def test_backends_that_are_killed_again_and_again(rig: Rig) -> None:
    # Given a drain whose backend is killed before some commits
    rig.append(0, 3000)
    tries = itertools.count(1)
    killed: list[int] = []
    plain_store = rig.sink.store

    def store(log_id, partition, expected_offset, batch, *, before_commit, **named):  # type: ignore[no-untyped-def]
        def kill_then_commit() -> None:
            before_commit()
            number = next(tries)
            if number in {1, 4, 5, 9}:  # the very first, and one batch twice
                killed.append(number)
                ask(
                    rig.settings.database_url,
                    "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name ^@ 'sluice'",
                )

        return plain_store(log_id, partition, expected_offset, batch, before_commit=kill_then_commit, **named)

    rig.sink.store = store  # type: ignore[method-assign]
    report = rig.drain_up_to(3000)
    # Then nothing is lost or doubled
    assert len(killed) == 4
    assert (report.stored, report.repeated, report.error) == (3000, 0, None)
    assert stored_ids(rig.settings.database_url) == [f"event-{number:06d}" for number in range(3000)]


def test_a_restarted_redis_goes_on_in_the_same_run(settings: Settings, own_log_redis: Server) -> None:
    # Given a log that is killed and comes back in the midst of a run
    changed = replace(
        settings,
        event_log_url=own_log_redis.url,
        drain_batch_records_max=100,
        drain_run_seconds_max=120.0,
        drain_hard_seconds_max=300.0,
    )
    with _rig(changed) as rig:
        rig.append(0, 1000)
        plain_store = rig.sink.store
        killed: list[int] = []

        def store(log_id, partition, expected_offset, batch, **hooks):  # type: ignore[no-untyped-def]
            if batch.offset == 400 and not killed:
                killed.append(batch.offset)
                own_log_redis.kill()
                own_log_redis.start()
            return plain_store(log_id, partition, expected_offset, batch, **hooks)

        rig.sink.store = store  # type: ignore[method-assign]
        report = rig.drain_up_to(1000)
        # Then all is stored once
        assert killed
        assert (report.stored, report.repeated) == (1000, 0)
        # And what comes after it gets offsets of its own
        rig.append(1000, 50)
        assert rig.drain_up_to(1050).stored == 50
        assert stored_ids(changed.database_url) == [f"event-{number:06d}" for number in range(1050)]


# --- rows that are refused ----------------------------------------------------------------------------------------


def test_a_backlog_of_which_a_fifth_is_refused_is_stored_in_pieces(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_trips = Counter[str]()
    guarded = Session._guarded

    def counted(session: Session, **options: bool) -> contextlib.AbstractContextManager[Any]:
        round_trips["all"] += 1
        return guarded(session, **options)

    monkeypatch.setattr(Session, "_guarded", counted)
    with _rig(settings) as rig:
        # Given a backlog of a whole batch, and a trigger that refuses every fifth row
        rig.append(0, 5000)
        fail_on_insert(settings.database_url, "P0001", when="right(NEW.event_id, 1) IN ('3', '8')")
        # When it is drained
        moved: list[int] = []
        round_trips.clear()
        report = rig.drain_up_to(5000, moved)
        # Then all of it is stored or kept, and the offset moves piece by piece
        assert (report.stored, report.dead_lettered) == (4000, 1000)
        assert len(moved) >= 10
        # And the rows are not tried in a round trip each: with 25 rows in one, a thousand rows a second leave
        # 25 ms for each
        assert round_trips["all"] <= 5000 / 25
        assert all(after - before <= 500 for before, after in itertools.pairwise([0, *moved]))
        assert ask(settings.database_url, "SELECT count(*) FROM dead_letters WHERE sqlstate = 'P0001'") == [(1000,)]


def test_a_row_for_which_a_trigger_fails_is_found_and_the_breaker_stays_closed(settings: Settings) -> None:
    with _rig(settings) as rig:
        # Given a trigger that fails by itself, for one row only
        rig.append(0, 1000)
        is_bad = "(CASE WHEN NEW.event_id = 'event-000777' THEN nextval(NEW.message) > 0 ELSE false END)"
        fail_on_insert(settings.database_url, "P0001", when=is_bad)
        # When it is drained
        report = rig.drain_up_to(1000)
        # Then this row is a dead letter with that reason, the others are stored
        assert (report.stored, report.dead_lettered) == (999, 1)
        ((offset, reason),) = ask(settings.database_url, "SELECT log_offset, reason FROM dead_letters")
        assert offset == 777
        assert "invalid name syntax" in reason
        # And nobody was stopped for it
        assert wiring.make_control_store(settings).state().pauses in (None, ())
