"""Who was refused, in words and as JSON."""

from pipeline.flow.refusals import Refusals, Refused
from pipeline.refusals_text import refusals_line, refusals_text, throttle_document

FOUND = Refusals(
    {
        "192.0.2.1": {"share": Refused(50, 1000), "rate": Refused(2, 40)},
        "2001:db8::/64": {"level": Refused(3, 2000)},
    },
    {"rate": Refused(5, 90)},
)


def test_the_words() -> None:
    assert refusals_text(FOUND).splitlines() == [
        "In the last 15 minutes, 3,130 events of 60 requests were refused.",
        "2001:db8::/64            2,000 events of 3 requests (level 2,000)",
        "192.0.2.1                1,040 events of 52 requests (share 1,000, rate 40)",
        "other accounts           90 events of 5 requests (rate 90)",
    ]
    assert refusals_text(Refusals()) == "Nothing was refused in the last 15 minutes."
    assert refusals_line(FOUND) == "2001:db8::/64 2,000 (level), 192.0.2.1 1,040 (share, rate), others 90; events in 15 minutes"


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
    assert refusals_line(many).startswith("10.0.0.8 8 (rate), ")
    assert refusals_line(many).endswith("10.0.0.4 4 (rate), others 6; events in 15 minutes")


def test_the_document_of_all_accounts_and_of_one() -> None:
    document = throttle_document(FOUND)
    assert (document["seconds"], document["complete"], document["requests"], document["events"]) == (900, True, 60, 3130)
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
