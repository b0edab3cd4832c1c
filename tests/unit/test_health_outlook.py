"""What the last seconds show: traffic, pace, and how long each partition has stored nothing."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.health.outlook import Lookout, outlook_of
from pipeline.health.snapshot import ProtocolTraffic
from pipeline.names import Level, ProtocolName
from pipeline.ports.history import COUNTS, LEVEL_COUNTS, PROTOCOL_COUNTS, HistoryEntry
from support.control import control_settings

SETTINGS = control_settings("redis://nowhere")


def entry(at: float, sample: dict[str, Any] | None = None, **counts: int) -> HistoryEntry:
    return HistoryEntry(f"{at}", at, tuple(counts.get(name, 0) for name in COUNTS), sample or {})


def lags(*lags: int, offsets: list[int], **more: Any) -> dict[str, Any]:
    return {"lags": list(lags), "offsets": offsets, "consumed": sum(offsets), **more}


def test_rates_are_of_the_last_seconds_and_shares_of_the_last_minute() -> None:
    # Given half a minute in which a third was refused, then one in which nothing was
    entries = [entry(float(t), admitted=20 * t, refused=10 * t, limited=10 * t) for t in range(31)]
    entries += [entry(float(t), admitted=600 + 40 * (t - 30), refused=300, limited=300) for t in range(31, 61)]
    # When it is read at the end
    traffic = outlook_of(entries, SETTINGS, 60.5).traffic
    assert traffic is not None
    assert (traffic.offered, traffic.admitted, traffic.refused) == (40.0, 40.0, 0.0)
    assert traffic.refused_share == pytest.approx(300 / 2100, rel=0.05)
    assert traffic.unavailable_share == 0.0


def test_refusals_are_counted_by_the_rate_at_which_they_came() -> None:
    # Given seconds at the lowest rate, and one of a process that wrote no rate
    rates = [1000.0] * 11 + [100.0] * 9 + [None] + [1000.0] * 20
    entries = [
        entry(float(t), {} if rate is None else {"rate": rate}, admitted=40 * t, refused=30 * min(t, 25))
        for t, rate in enumerate(rates)
    ]
    traffic = outlook_of(entries, SETTINGS, 40.0).traffic
    assert traffic is not None
    # Then what is counted after a rise may have been refused before: processes add their counts once a second
    assert traffic.refused_at == {1000.0: 30.0 * (10 + 3), 100.0: 30.0 * (9 + 3)}
    # The window is that of the share
    shorter = outlook_of(entries, replace(SETTINGS, refused_seconds=25.0), 40.0).traffic
    assert shorter is not None
    assert shorter.refused_at == {1000.0: 90.0, 100.0: 210.0}
    # A process without a history has its own rate
    lookout = Lookout(SETTINGS)
    for second, (refused, rate) in enumerate([(0, 50.0), (7, 900.0)]):
        lookout.note_own({**dict.fromkeys(COUNTS, 0), "refused": refused}, 1.0, float(second), rate)
    own = lookout.seen(2.0).traffic
    assert own is not None
    assert own.refused_at == {50.0: 7.0}


def test_a_flush_and_a_hole_make_no_traffic_up() -> None:
    entries = [entry(1.0, admitted=900), entry(2.0, admitted=5), entry(3.0, admitted=15), entry(20.0, admitted=9000)]
    traffic = outlook_of(entries[:3], SETTINGS, 3.0).traffic
    assert traffic is not None
    assert traffic.admitted == 10.0
    assert outlook_of(entries[3:], SETTINGS, 20.0).traffic is None


def test_traffic_by_level_is_of_the_last_seconds_where_it_is_counted() -> None:
    # Given 30 INFO and 10 ERROR a second, of which a third of INFO is refused, and counts of levels in most entries
    per_second = {"info accepted": 20, "info refused": 10, "error accepted": 10}
    entries = [
        replace(
            entry(float(t), admitted=30 * t, refused=10 * t),
            levels=() if t == 57 else tuple(per_second.get(name, 0) * t for name in LEVEL_COUNTS),
        )
        for t in range(61)
    ]
    traffic = outlook_of(entries, SETTINGS, 60.5).traffic
    assert traffic is not None
    assert (traffic.levels[Level.INFO].admitted, traffic.levels[Level.INFO].refused) == (20.0, 10.0)
    assert traffic.levels[Level.INFO].refused_share == pytest.approx(1 / 3)
    assert traffic.levels[Level.ERROR].refused_share == traffic.levels[Level.DEBUG].refused_share == 0.0
    # A flush makes nothing up, and where no process counts levels there are none
    flushed = replace(entry(61.0), levels=(0,) * len(LEVEL_COUNTS))
    after = outlook_of([*entries, flushed], SETTINGS, 61.5).traffic
    assert after is not None
    assert after.levels == {}
    without = outlook_of([replace(one, levels=()) for one in entries], SETTINGS, 60.5).traffic
    assert without is not None
    assert without.levels == {}


def test_traffic_by_protocol_is_of_those_that_were_used() -> None:
    # Given 100 events a second of which 30 came as OTLP, and 10 refused; one in Loki's protocol long ago
    def protocols(at: int) -> tuple[int, ...]:
        totals = {"otlp accepted": 30 * at, "otlp refused": 4 * at, "otlp rejected": at, "loki accepted": 1}
        return tuple(totals.get(name, 0) for name in PROTOCOL_COUNTS)

    entries = [
        replace(entry(float(at), admitted=100 * at, refused=10 * at), protocols=protocols(at)) for at in range(1, 61)
    ]
    traffic = outlook_of(entries, SETTINGS, 60.5).traffic
    assert traffic is not None
    # Then Sluice's own has the rest
    assert traffic.protocols == {
        ProtocolName.EVENTS: ProtocolTraffic(70.0, 6.0, 0.0),
        ProtocolName.OTLP: ProtocolTraffic(30.0, 4.0, 1.0),
        ProtocolName.LOKI: ProtocolTraffic(0.0, 0.0, 0.0),
    }
    # A flush makes nothing up, and where only Sluice's own is used there is nothing to tell apart
    flushed = replace(entry(61.0), protocols=protocols(0))
    for others in ([*entries, flushed], [replace(one, protocols=()) for one in entries]):
        after = outlook_of(others, SETTINGS, 61.0).traffic
        assert after is not None
        assert after.protocols == {}


def test_what_is_old_is_unknown() -> None:
    entries = [entry(float(t), lags(5, offsets=[t], tokens=3), admitted=t) for t in range(10)]
    assert outlook_of(entries, SETTINGS, 9.5).lag_by_partition == {0: 5}
    old = outlook_of(entries, SETTINGS, 30.0)
    assert (old.traffic, old.lag_by_partition, old.drain_rate, old.bucket_tokens) == (None, None, None, None)
    assert dict(old.no_progress_seconds) == {}


def test_a_partition_with_events_that_stores_none_is_counted_from_its_last_progress() -> None:
    # Given partition 0 that works, 1 that has stopped at second 10, and 2 that has nothing to do
    entries = [entry(float(t), lags(9, 4, 0, offsets=[t, min(t, 10), 7])) for t in range(41)]
    outlook = outlook_of(entries, SETTINGS, 40.0)
    assert dict(outlook.no_progress_seconds) == {0: 0.0, 1: 30.0}
    assert outlook.drain_rate == 1.0


def test_time_in_which_consumption_was_paused_does_not_count() -> None:
    entries = [entry(float(t), lags(9, offsets=[5], paused=t < 20)) for t in range(31)]
    assert outlook_of(entries, SETTINGS, 30.0).no_progress_seconds[0] == 11.0


def test_entries_of_a_version_that_wrote_no_offsets_say_nothing_about_progress() -> None:
    entries = [entry(float(t), {"lags": [4], "consumed": 7}) for t in range(60)]
    outlook = outlook_of(entries, SETTINGS, 59.0)
    assert (outlook.lag_by_partition, dict(outlook.no_progress_seconds)) == ({0: 4}, {})


def test_a_version_that_counts_other_things_makes_no_traffic_up() -> None:
    newer = HistoryEntry("3.0", 3.0, (7,) * (len(COUNTS) + 1), {})
    assert outlook_of([entry(1.0, admitted=5), entry(2.0, admitted=9), newer], SETTINGS, 3.0).traffic is not None
    assert outlook_of([entry(2.0, admitted=9), newer], SETTINGS, 3.0).traffic is None


def test_a_reader_that_runs_on_counts_by_its_own_clock() -> None:
    # Given a reader whose control server's clock is set back an hour, and then forward by a day
    lookout = Lookout(SETTINGS)
    for second in range(41):
        step = -3600.0 if 10 <= second < 20 else 86_400.0 if second >= 20 else 0.0
        sample = lags(4, offsets=[min(second, 5)])
        lookout.note_entries([entry(1e9 + second + step, sample, admitted=10 * second)], now=500.0 + second)
    # Then ages and rates are what they were
    outlook = lookout.seen(540.0)
    assert outlook.no_progress_seconds[0] == 35.0
    assert outlook.traffic is not None
    assert outlook.traffic.admitted == 10.0


@pytest.mark.parametrize("back", [0.4, 5.0, 3600.0])
@pytest.mark.parametrize("now", [None, 500.0], ids=["a reader that looks once", "the first look of one that runs on"])
def test_a_partition_that_stands_is_seen_though_the_stores_clock_was_set_back(now: float | None, back: float) -> None:
    # Given a partition that has stood for 40 s, in which the control server's clock was set back
    entries = [
        entry(1e9 + second - (back if second >= 20 else 0.0), lags(4, 4, offsets=[5, second]), admitted=10 * second)
        for second in range(41)
    ]
    # When somebody reads the entries at once
    lookout = Lookout(SETTINGS)
    lookout.note_entries(entries, now=now)
    outlook = lookout.seen(entries[-1].at if now is None else now)
    # Then only the second of the step is missing, and traffic and pace are of the last seconds
    assert 39.0 <= outlook.no_progress_seconds[0] <= 40.0
    assert outlook.no_progress_seconds[1] == 0.0
    assert outlook.drain_rate == 1.0
    assert outlook.traffic is not None
    assert outlook.traffic.admitted == 10.0


def test_what_one_process_counts_itself_only_counts_where_there_is_no_history() -> None:
    lookout = Lookout(SETTINGS)
    nothing = dict.fromkeys(COUNTS, 0)
    for second in range(5):
        lookout.note_own({**nothing, "admitted": 7, "refused": 1}, 1.0, float(second))
    own = lookout.seen(4.0).traffic
    assert own is not None
    assert (own.admitted, own.refused_share) == (7.0, 0.125)
    lookout.note_entries([entry(8.0, admitted=1), entry(9.0, admitted=101)], now=5.0)
    whole = lookout.seen(5.0).traffic
    assert whole is not None
    assert whole.admitted == 100.0


def test_another_log_begins_anew() -> None:
    entries = [entry(1.0, lags(0, offsets=[900])), entry(2.0, lags(5, offsets=[1])), entry(4.0, lags(5, offsets=[5]))]
    assert outlook_of(entries, SETTINGS, 4.0).drain_rate == 2.0


def test_the_window_is_a_setting() -> None:
    entries = [entry(float(t), admitted=10 * t, refused=min(t, 5), limited=min(t, 5)) for t in range(31)]
    shorter = outlook_of(entries, replace(SETTINGS, refused_seconds=5.0), 30.0).traffic
    assert shorter is not None
    assert shorter.refused_share == 0.0
    assert shorter.share_time == "last 5 s"
