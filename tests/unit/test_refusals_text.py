"""Who was refused, in words and as JSON."""

from dataclasses import replace

from pipeline.__main__ import screen
from pipeline.flow.refusals import Refusals, Refused
from pipeline.health.snapshot import LevelTraffic, Traffic
from pipeline.names import Level
from pipeline.refusals_text import refusals_line, refusals_text, throttle_document
from pipeline.status import SystemStatus
from support.health import HEALTHY
from tasks import remote

FOUND = Refusals(
    {
        "192.0.2.1": {"share": Refused(50, 1000), "rate": Refused(2, 40)},
        "2001:db8::/64": {"level": Refused(3, 2000)},
    },
    {"rate": Refused(5, 90)},
)


def test_the_words() -> None:
    assert refusals_text(FOUND).splitlines() == [
        "Refused in the last 15 minutes: 3,130 events of 60 requests.",
        "2001:db8::/64            2,000 events of 3 requests (level 2,000)",
        "192.0.2.1                1,040 events of 52 requests (share 1,000, rate 40)",
        "other accounts           90 events of 5 requests (rate 90)",
    ]
    assert refusals_text(Refusals()) == "Nothing was refused in the last 15 minutes."
    one = Refusals({"192.0.2.1": {"rate": Refused(1, 1)}})
    assert refusals_text(one).splitlines()[0] == "Refused in the last 15 minutes: 1 event of 1 request."
    assert (
        refusals_line(FOUND)
        == "2001:db8::/64: 2,000 events (level), 192.0.2.1: 1,040 events (share, rate), others: 90 events in 15 minutes"
    )


def test_the_words_for_one_account() -> None:
    assert refusals_text(FOUND, "192.0.2.1").splitlines()[1:] == [
        "192.0.2.1                1,040 events of 52 requests (share 1,000, rate 40)"
    ]
    nothing = "Nothing was refused to 192.0.2.9 by itself in the last 15 minutes."
    assert refusals_text(FOUND, "192.0.2.9") == (
        f"{nothing} It may be among the other accounts: 90 events of 5 requests."
    )
    assert refusals_text(Refusals(), "192.0.2.9") == nothing


def test_a_line_shows_the_heaviest_accounts_only() -> None:
    many = Refusals({f"10.0.0.{n}": {"rate": Refused(1, n)} for n in range(1, 9)})
    assert refusals_line(many).startswith("10.0.0.8: 8 events (rate), ")
    assert refusals_line(many).endswith("10.0.0.4: 4 events (rate), others: 6 events in 15 minutes")


def test_the_document_of_all_accounts_and_of_one() -> None:
    document = throttle_document(FOUND)
    assert (document["seconds"], document["complete"], document["requests"], document["events"]) == (
        900,
        True,
        60,
        3130,
    )
    assert [one["account"] for one in document["accounts"]] == ["2001:db8::/64", "192.0.2.1"]
    assert document["accounts"][1]["limitedBy"] == {
        "share": {"requests": 50, "events": 1000},
        "rate": {"requests": 2, "events": 40},
    }
    assert document["other"] == {"requests": 5, "events": 90, "limitedBy": {"rate": {"requests": 5, "events": 90}}}
    # An address of an IPv6 network names its account; an unknown one has no entry
    one = throttle_document(FOUND, "2001:db8::17", is_complete=False)
    assert [found["account"] for found in one["accounts"]] == ["2001:db8::/64"]
    assert (one["complete"], one["events"]) == (False, 3130)
    assert throttle_document(FOUND, "nobody")["accounts"] == []


def test_the_screen_of_status_shows_them_where_there_are_any() -> None:
    status = SystemStatus(replace(HEALTHY, refusals=Refusals({"192.0.2.1": {"share": Refused(2, 1040)}})))
    assert "refused to   192.0.2.1: 1,040 events (share) in 15 minutes" in screen(status).splitlines()
    assert "refused to" not in screen(SystemStatus(replace(HEALTHY, refusals=Refusals())))
    assert "refused to" not in screen(SystemStatus(HEALTHY))


def test_inspect_shows_levels_and_refused_accounts() -> None:
    # Given traffic with levels, and an account that was refused
    levels = {Level.DEBUG: LevelTraffic(0.0, 400.0), Level.ERROR: LevelTraffic(50.0, 0.0)}
    inputs = replace(HEALTHY, traffic=Traffic(50.0, 400.0, 0.5, 0.0, levels=levels))
    refused = Refusals({"192.0.2.1": {"level": Refused(2, 400)}})
    # When an operator looks, then both are in the words and in the document
    shown = remote._told(SystemStatus(replace(inputs, refusals=refused)))
    assert "  debug      400 events/s, refused 100 %" in shown["ok"]
    assert "refused to   192.0.2.1: 400 events (level) in 15 minutes" in shown["ok"]
    assert shown["document"]["levels"]["error"] == {"admitted": 50.0, "refused": 0.0, "refusedShare": 0.0}
    assert shown["document"]["throttle"]["events"] == 400
