"""A head that a connection has sent before stands for no head that would be read in another way."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ingest.app import EVENTS_PATH
from ingest.codecs.events import events_codec
from ingest.http.early_rejection import EarlyRejection
from ingest.http.request_id import RequestIds
from pipeline.metrics import IngestMetrics
from pipeline.settings import Settings

NO_GATE: Any = None  # heads are only read here
REJECTION = EarlyRejection(
    EVENTS_PATH,
    events_codec(Settings()),
    gate=NO_GATE,
    metrics=IngestMetrics(CollectorRegistry()),
    request_ids=RequestIds(),
    bytes_max=Settings().body_bytes_max,
)
LIKE = b"POST /api/logs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
VARIED = {"content-length", "x-request-id"}

blanks = st.sampled_from(["", " ", "\t", "  "])
lengths = st.sampled_from(["0", "5", "17", "0017", "9" * 15])
ids = st.sampled_from(["a", "order-77", "x" * 64, "7"])
odd_values = st.sampled_from(
    [
        "",
        "+5",
        "5 5",
        "5,5",
        "9" * 16,
        "٣",
        "x" * 65,
        "-a",
        "a b",
        "5\r\nTransfer-Encoding: chunked",
        "5\r\n\r\n",
        "5\n",
    ]
)
others = st.sampled_from(
    ["host:a:8080", "User-Agent: a/1", "Accept: */*", "X-Length: 5", "Connection: keep-alive",
     "Authorization: Bearer k", "X: \xe9", "Content-Encoding: gzip", "Expect: 100-continue", "Content-Length: 5"]
)  # fmt: skip


@st.composite
def heads(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A head, and one whose two varied values are others; sometimes one more byte is another, or missing."""
    lines = ["Host: localhost", "Content-Type: application/json", *draw(st.lists(others, max_size=3))]
    begin, end = draw(blanks), draw(blanks)
    lines.append("Content-Length:" + begin + "{length}" + end)
    if draw(st.booleans()):
        lines.append("X-Request-ID:" + draw(blanks) + "{id}" + draw(blanks))
    text = "POST /api/logs HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in draw(st.permutations(lines))) + "\r\n"
    first = text.format(length=draw(lengths), id=draw(ids | odd_values))
    second = bytearray(text.format(length=draw(lengths | odd_values), id=draw(ids | odd_values)).encode())
    if draw(st.booleans()):
        at = draw(st.integers(0, len(second) - 1))
        second[at : at + 1] = draw(st.binary(max_size=2))
    return first.encode(), bytes(second)


@given(heads(), st.binary(max_size=8))
@example((LIKE % 5, LIKE % 5), b"12345")
@example((LIKE % 5, LIKE % 10**15), b"")  # one digit too many
@settings(max_examples=500, deadline=None)
def test_a_head_that_is_recognised_would_be_read_the_same(pair: tuple[bytes, bytes], body: bytes) -> None:
    first, second = pair
    known = REJECTION.read(first)
    if known is None:
        return
    assert known.match(first + body) is not None, "a head is like itself"
    found = known.match(second + body)
    if found is None:
        return
    itself = REJECTION.read(second + body)
    assert itself is not None
    assert itself.match(second + body) == found
    assert {name: value for name, value in known.fields.items() if name not in VARIED} == {
        name: value for name, value in itself.fields.items() if name not in VARIED
    }
    assert found[:2] == (second.find(b"\r\n\r\n") + 4, int(itself.fields["content-length"]))
    if found[2]:
        assert found[2].decode() == itself.fields["x-request-id"]


def test_the_two_values_may_differ_in_either_order() -> None:
    length, name = "Content-Length: %d\r\n", "X-Request-ID: %s\r\n"
    for order in (length + name, name + length):
        text = (
            "POST /api/logs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + order + "User-Agent: a\r\n\r\n"
        )

        def head(size: int, id_: str, text: str = text, order: str = order) -> bytes:
            return (text % ((size, id_) if order.startswith("Content") else (id_, size))).encode()

        known = REJECTION.read(head(5, "first"))
        assert known is not None
        assert known.match(head(1234, "second") + b"{") == (len(head(1234, "second")), 1234, b"second")
        assert known.match(head(5, "no name")) is None
        assert known.match(head(5, "first")[:-1]) is None
