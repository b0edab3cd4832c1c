"""The bulk API of Elasticsearch: what documents become, and what shippers are answered."""

import contextlib
import gzip
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    NotReadyError,
    PartlyStoredError,
    RateLimitedError,
    RequestError,
)
from ingest.protocols.decoding import Decoding
from ingest.protocols.elasticsearch import VERSIONS, bulk_codec, bulk_inquiries, version_response
from ingest.protocols.filter_path import FILTER_CHARS_MAX
from ingest.protocols.json_records import RECORD_BYTES_MAX, RECORD_VALUES_MAX
from ingest.protocols.records import DROPPED_KEY
from ingest.types import Head, Response
from pipeline.errors import OverloadedError, SluiceError
from pipeline.event import MESSAGE_BYTES_MAX, Event
from pipeline.names import Health
from pipeline.settings import Settings
from support.clients import recorded
from support.protocols import NOW, FixedClock, Sent, TimedDecoding, accepted, decoded

SETTINGS = Settings()
CODEC = bulk_codec(Decoding(SETTINGS, FixedClock()))
NOW_MS = int(NOW * 1000)


def body_of(*lines: Any) -> bytes:
    """A bulk body; bytes are lines as they are."""
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


async def answered(*lines: Any, target: str = "/_bulk", headers: dict[str, str] | None = None) -> Any:
    """The answer to a bulk request, decoded."""
    _, response = await accepted(CODEC, Sent(body_of(*lines), headers or {}, target))
    assert response.status == 200
    return json.loads(response.body)


async def event_of(document: Any, action: Any = None, target: str = "/logs-app/_bulk") -> Event:
    """The event of one document."""
    batch = await decoded(CODEC, Sent(body_of(action or {"index": {}}, document), {}, target))
    (event,) = batch.events
    return event


# --- Mapping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"correlationId": "c", "trace.id": "t"}, "c"),
        ({"trace": {"id": "t"}, "trace_id": "u"}, "t"),
        ({"trace_id": "u"}, "u"),
        ({"service": {"name": "shop"}}, "shop"),
        ({}, "logs-app"),
    ],
)
async def test_the_correlation_id(document: dict[str, Any], expected: str) -> None:
    assert (await event_of({"message": "m", **document})).correlation_id == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"log": {"level": "err"}, "level": "info"}, "ERROR"),
        ({"log.level": "warn"}, "WARN"),
        ({"level": "Debug"}, "DEBUG"),
        ({"level": 50}, "ERROR"),
        ({"severity": "CRITICAL"}, "FATAL"),
        ({"level": "loud", "severity": "trace"}, "TRACE"),
        ({}, "INFO"),
    ],
)
async def test_the_severity(document: dict[str, Any], expected: str) -> None:
    assert (await event_of({"message": "m", **document})).severity == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"message": "a", "msg": "b"}, "a"),
        ({"msg": "b", "event": "c"}, "b"),
        ({"event": "c", "log": "d"}, "c"),
        ({"log": "d", "text": "e"}, "d"),
        ({"text": "e"}, "e"),
        ({"message": ["a", 1]}, '["a",1]'),
        ({"userId": 42}, '{"userId":42}'),
    ],
)
async def test_the_message(document: dict[str, Any], expected: str) -> None:
    assert (await event_of(document)).message == expected


@pytest.mark.parametrize(
    ("document", "action", "expected"),
    [
        ({"service": {"name": "shop"}, "source": "s"}, {}, "shop"),
        ({"source": "s", "logger": "l"}, {}, "s"),
        ({"logger": "l"}, {}, "l"),
        ({}, {}, "logs-app"),
        ({}, {"_index": "other"}, "other"),
    ],
)
async def test_the_source(document: dict[str, Any], action: dict[str, Any], expected: str) -> None:
    event = await event_of({"message": "m", **document}, {"index": action})
    assert event.source == expected
    assert (event.attributes or {})["_index"] == action.get("_index", "logs-app")


@pytest.mark.parametrize(
    ("document", "timestamp"),
    [
        ({"@timestamp": "2026-11-26T07:29:53.157Z", "time": 1}, 1795678193157),
        ({"timestamp": 1795678193157}, 1795678193157),
        ({"time": 1795678193.157}, 1795678193157),
        ({"date": "2026-11-26T08:29:53.157+01:00"}, 1795678193157),
        ({"dt": "1795678193157"}, 1795678193157),
        ({}, NOW_MS),
    ],
)
async def test_the_time(document: dict[str, Any], timestamp: int) -> None:
    assert (await event_of({"message": "m", **document})).timestamp == timestamp


async def test_the_attributes() -> None:
    document = {"message": "m", "tags": ["a", 1], "host": {"name": "h", "os": {"kernel": "6"}}, "service.name": "s"}
    assert (await event_of(document)).attributes == {
        "tags": '["a",1]',
        "host.name": "h",
        "host.os.kernel": "6",
        "_index": "logs-app",
    }


@pytest.mark.parametrize(
    ("index", "own_id", "event_id"),
    [
        ("a", "2971799e-c785-ac65-493a-03e5fbb85495", "2971799e-c785-ac65-493a-03e5fbb85495"),
        ("a", "W0tpsmIBdwcYyG50zbta", "W0tpsmIBdwcYyG50zbta"),
        ("a", "1", "a/1"),
        ("b", "1", "b/1"),
        ("a", 1, "a/1"),
    ],
)
async def test_the_id_of_a_document_is_that_of_its_event(index: str, own_id: Any, event_id: str) -> None:
    lines = ({"create": {"_index": index, "_id": own_id}}, {"message": "m"})
    assert (await event_of(lines[1], lines[0])).event_id == event_id
    (item,) = (await answered(*lines))["items"]
    assert item["create"]["_id"] == str(own_id)


async def test_an_id_twice_in_one_body_is_taken_twice_as_an_update_is() -> None:
    action = {"index": {"_index": "a", "_id": "order-7"}}
    lines = (action, {"message": "one"}, action, {"message": "another"})
    batch = await decoded(CODEC, Sent(body_of(*lines), {}, "/_bulk"))
    # Both events have the id: the drain stores the first, and keeps the other as a dead letter
    assert [(event.event_id, event.message) for event in batch.events] == [
        ("a/order-7", "one"),
        ("a/order-7", "another"),
    ]
    assert [item["index"]["status"] for item in (await answered(*lines))["items"]] == [201, 201]


async def test_a_body_that_is_sent_again_has_the_same_ids() -> None:
    def ids(target: str, time_: str = "2026-11-26T07:29:53.157Z") -> Any:
        return decoded(CODEC, Sent(body_of({"index": {}}, {"@timestamp": time_}, {"index": {}}, {}), {}, target))

    first, again, other = [[e.event_id for e in (await ids(to)).events] for to in ("/a/_bulk", "/a/_bulk", "/b/_bulk")]
    assert first == again
    assert len({*first, *other}) == 4, "the index of the address is part of the events"
    batch = await decoded(CODEC, Sent(body_of({"index": {}}, {"message": "no time"}), {}, "/a/_bulk"))
    assert batch.events[0].event_id is None


async def test_documents_without_a_trace_are_spread_over_partitions() -> None:
    lines = [
        {"index": {}},
        {"service.name": "s"},
        {"index": {}},
        {"service.name": "s"},
        {"index": {}},
        {"trace.id": "t"},
    ]
    batch = await decoded(CODEC, Sent(body_of(*lines), {}, "/a/_bulk"))
    assert batch.partition_keys == ["s#0", "s#1", "t"]


# --- Recordings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "op", "source", "severity", "correlation_id"),
    [
        ("py-es-bulk-0", "index", "shop", "INFO", "0af7651916cd43dd8448eb211c80319c"),
        ("py-os-bulk-gzip-create-0", "create", "shop", "INFO", "0af7651916cd43dd8448eb211c80319c"),
        ("js-es-bulk-0", "index", "logs-app", "INFO", "logs-app"),
        ("js-pino-elasticsearch-0", "index", "vm", "INFO", "vm"),
        ("c-fluentbit-es-0", "create", "shop", "INFO", "c0"),
        ("c-fluentbit-es-create-0", "create", "shop", "INFO", "c0"),
        ("deb-rsyslog-omelasticsearch-0", "index", "shop", "INFO", "shop"),
    ],
)
async def test_what_clients_send(name: str, op: str, source: str, severity: str, correlation_id: str) -> None:
    request = recorded(name)
    sent = Sent(request.body, request.headers, request.target)
    batch, response = await accepted(CODEC, sent)
    first = batch.events[0]
    assert (first.source, first.severity, first.correlation_id) == (source, severity, correlation_id)
    count = 1 if "pino" in name else 5
    start = 1 if "pino" in name else 0
    assert [event.message for event in batch.events] == [f"EV{start + n} hello" for n in range(count)]
    assert all(1795676000000 < event.timestamp < 1795679000000 for event in batch.events)
    assert len({event.event_id for event in batch.events}) == count
    assert [e.event_id for e in (await decoded(CODEC, sent)).events] == [e.event_id for e in batch.events]
    answer = json.loads(response.body)
    assert list(answer) == ["took", "errors", "items"]
    assert answer["errors"] is False
    assert [list(item) for item in answer["items"]] == [[op]] * count
    assert {item[op]["status"] for item in answer["items"]} == {201}
    assert response.headers["x-elastic-product"] == "Elasticsearch"
    version = {"py-es": "9", "js-es": "8", "js-pi": "8"}.get(name[:5])
    media_type = f"application/vnd.elasticsearch+json;compatible-with={version}" if version else "application/json"
    assert response.media_type == media_type


async def test_an_error_of_one_level_and_a_syslog_host() -> None:
    request = recorded("deb-rsyslog-omelasticsearch-0")
    event = (await decoded(CODEC, Sent(request.body, request.headers))).events[1]
    assert event.severity == "ERROR"
    assert event.attributes == {"host.name": "host1", "_index": "logs-app", "time_ns": 1795677262123456000}


# --- Answers ------------------------------------------------------------------------------------------------------


async def test_the_answer_has_the_items_in_their_order_under_the_same_operation() -> None:
    answer = await answered(
        {"index": {"_index": "a", "_id": "i1"}},
        {"message": "1"},
        {"delete": {"_index": "a", "_id": "i2"}},
        {"update": {"_index": "a", "_id": "i3"}},
        {"doc": {"message": "2"}},
        {"create": {"_index": "b"}},
        b"{not json",
        {"create": {}},
        {"message": "3"},
        target="/c/_bulk",
    )
    assert answer["errors"] is True
    first, deleted, updated, broken, last = answer["items"]
    assert first == {"index": {"_index": "a", "_id": "i1", "result": "created", "status": 201}}
    assert deleted == {
        "delete": {
            "_index": "a",
            "_id": "i2",
            "status": 400,
            "error": {
                "type": "illegal_argument_exception",
                "reason": "delete is not supported: events are only added",
            },
        }
    }
    assert (updated["update"]["_id"], updated["update"]["status"]) == ("i3", 400)
    assert broken["create"]["error"] == {
        "type": "document_parsing_exception",
        "reason": "failed to parse: the document is no JSON object",
    }
    assert (last["create"]["_index"], last["create"]["status"]) == ("c", 201)


async def test_an_action_is_known_by_its_first_field() -> None:
    answer = await answered(
        {"index": {"_index": "a", "pipeline": None}, "attempts": 3},  # winston-elasticsearch
        {"message": "1"},
        b' { "create" : {"_index": "b"}, "x": {"index": 1} }',
        {"message": "2"},
        {"attempts": 3, "index": {"_index": "c"}},  # a document may have such a field
        {"message": "3"},
    )
    statuses = [(op, item["status"]) for one in answer["items"] for op, item in one.items()]
    assert statuses == [("index", 201), ("create", 201), ("index", 400)]


async def test_what_is_not_stored_is_counted() -> None:
    lines: tuple[Any, ...] = ({"delete": {}}, {"index": {}}, b"[]", {"index": {}}, {"message": "m"}, {"index": {}})
    batch, _ = await accepted(CODEC, Sent(body_of(*lines)))
    assert ([event.message for event in batch.events], batch.rejected) == (["m"], 3)


@pytest.mark.parametrize(
    ("lines", "messages", "statuses"),
    [
        # A line that is no action, and its document
        (
            ({"index": {}}, {"message": "a"}, {"foo": {}}, {"x": 1}, {"index": {}}, {"message": "b"}),
            "ab",
            [201, 400, 201],
        ),
        (({"index": {}}, {"message": "a"}, b"garbage", {"index": {}}, {"message": "b"}), "ab", [201, 400, 201]),
        # Both halves of an action at once
        (({"index": {}, "create": {}}, {"message": "a"}, {"index": {}}, {"message": "b"}), "b", [400, 201]),
        # An empty document is one, an empty line between documents is none
        (({"index": {}}, b"", {"index": {}}, {"message": "b"}), "b", [400, 201]),
        (({"index": {}}, {"message": "a"}, b"", b" \r", {"index": {}}, {"message": "b"}), "ab", [201, 201]),
        # No document after the last action
        (({"index": {}}, {"message": "a"}, {"index": {}}), "a", [201, 400]),
    ],
)
async def test_a_broken_part_costs_no_other_document(lines: Any, messages: str, statuses: list[int]) -> None:
    batch, response = await accepted(CODEC, Sent(body_of(*lines)))
    assert [event.message for event in batch.events] == list(messages)
    items = json.loads(response.body)["items"]
    assert [next(iter(item.values()))["status"] for item in items] == statuses


async def test_a_body_may_end_without_a_line_feed_and_have_carriage_returns() -> None:
    for body in (
        b'{"index":{}}\n{"message":"m"}',
        b'{"index":{}}\r\n{"message":"m"}\r\n',
        b'\xef\xbb\xbf{"index":{}}\n{"message":"m"}',
    ):
        (event,) = (await decoded(CODEC, Sent(body))).events
        assert event.message == "m"


@pytest.mark.parametrize("body", [b"", b"\n\n", b"garbage", b'{"message":"m"}\n', b"[]\n[]\n", b"\x00\xff" * 10])
async def test_a_body_without_an_action_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        await decoded(CODEC, Sent(body))


FILTERED = [
    ("errors", {"errors": True}),
    ("errors,items.*.error,items.*.status", {
        "errors": True,
        "items": [
            {"index": {"status": 201}},
            {"create": {"status": 400, "error": {"type": "document_parsing_exception", "reason": "R"}}},
        ],
    }),
    ("errors,items.*.error", {
        "errors": True,
        "items": [{"create": {"error": {"type": "document_parsing_exception", "reason": "R"}}}],
    }),
    ("items.*._index,items.*.status,items.*.failure_store,items.*.error.type,items.*.error.reason", {
        "items": [
            {"index": {"_index": "a", "status": 201}},
            {"create": {"_index": "b", "status": 400, "error": {"type": "document_parsing_exception", "reason": "R"}}},
        ],
    }),
    ("-took,-items.*.result,-items.**.reason,-items.*._*", {
        "errors": True,
        "items": [
            {"index": {"status": 201}},
            {"create": {"status": 400, "error": {"type": "document_parsing_exception"}}},
        ],
    }),
    ("**.st*us,-items.create", {"items": [{"index": {"status": 201}}]}),
    ("items.create.**,-items.**.reason,-items.*._*", {
        "items": [{"create": {"status": 400, "error": {"type": "document_parsing_exception"}}}],
    }),
    ("items.create.error.type", {"items": [{"create": {"error": {"type": "document_parsing_exception"}}}]}),
    ("nothing", {}),
    ("?,[a],..,a..b", {}),
]  # fmt: skip


@pytest.mark.parametrize(("filter_path", "expected"), FILTERED)
async def test_filter_path_says_which_fields_an_answer_has(filter_path: str, expected: dict[str, Any]) -> None:
    lines = ({"index": {"_index": "a"}}, {"message": "m"}, {"create": {"_index": "b"}}, b"{")
    encoded = filter_path.replace(",", "%2C").replace("*", "%2A")
    answer = await answered(*lines, target=f"/_bulk?timeout=1s&filter_path={encoded}")
    for item in answer.get("items", ()):
        for result in item.values():
            if "reason" in result.get("error", {}):
                result["error"]["reason"] = "R"
    assert answer == expected


@pytest.mark.parametrize(
    "query",
    ["", "filter_path=", "filter_path=" + "a," * FILTER_CHARS_MAX, "filter_path=errors" + "&a=" * 200],
)
async def test_an_empty_or_vast_filter_keeps_all(query: str) -> None:
    answer = await answered({"index": {}}, {}, target=f"/_bulk?{query}")
    assert list(answer) == ["took", "errors", "items"]


@pytest.mark.parametrize("pattern", ["*" * 900, "**." * 300 + "x", "*s" * 450, "**.a." * 180, "*t*" * 300])
async def test_a_filter_that_wants_long_work_gets_none(pattern: str) -> None:
    began = time.thread_time()
    await answered({"index": {}}, {}, target=f"/_bulk?filter_path={pattern}")
    assert time.thread_time() - began < 0.2


@pytest.mark.parametrize(
    ("headers", "media_type"),
    [
        ({}, "application/json"),
        ({"accept": "*/*", "content-type": "application/x-ndjson"}, "application/json"),
        (
            {"content-type": "application/vnd.elasticsearch+x-ndjson;compatible-with=9"},
            "application/vnd.elasticsearch+json;compatible-with=9",
        ),
        (
            {"accept": "application/vnd.elasticsearch+json; compatible-with=8", "content-type": "application/json"},
            "application/vnd.elasticsearch+json;compatible-with=8",
        ),
    ],
)
async def test_the_media_type_of_an_answer_has_the_version_that_was_asked_for(
    headers: dict[str, str], media_type: str
) -> None:
    _, response = await accepted(CODEC, Sent(body_of({"index": {}}, {}), headers))
    assert response.media_type == media_type
    assert CODEC.rejected(Head(headers, "/_bulk"), MalformedBodyError("no")).media_type == media_type


RATE_LIMITED = RateLimitedError(2.0, quota=10, left=0)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RATE_LIMITED, 429, "es_rejected_execution_exception"),
        (OverloadedError("full"), 429, "es_rejected_execution_exception"),
        (NotReadyError("stopping"), 429, "cluster_block_exception"),
        (PartlyStoredError([1], 2, "slow"), 429, "cluster_block_exception"),
        (MalformedBodyError("odd"), 400, "illegal_argument_exception"),
        (BodyTooLargeError(5, "bytes"), 413, "content_too_long_exception"),
    ],
)
def test_a_whole_request_is_refused_in_the_form_of_elasticsearch(error: SluiceError, status: int, kind: str) -> None:
    response = CODEC.rejected(Head({}, "/_bulk"), error)
    assert response.status == status
    cause = {"type": kind, "reason": str(error)}
    assert json.loads(response.body) == {"error": {"root_cause": [cause], **cause}, "status": status}
    assert response.headers["x-elastic-product"] == "Elasticsearch"
    assert ("retry-after" in response.headers) == (status == 429)


# --- Limits and hostile content -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [({"index": {}}, {}), ({"delete": {}},), ({"index": {}}, b"x")])
async def test_a_body_has_a_limit_of_documents_whatever_becomes_of_them(lines: Any) -> None:
    codec = bulk_codec(Decoding(replace(SETTINGS, protocol_body_events_max=3), FixedClock()))
    await decoded(codec, Sent(body_of(*lines * 3)))
    with pytest.raises(BodyTooLargeError):
        await decoded(codec, Sent(body_of(*lines * 4)))


async def test_what_other_servers_refuse_is_stored() -> None:
    documents = {
        b'{"message":"a\xffb"}': "a\ufffdb",
        b'{"message":"a\\u0000b"}': "a\ufffdb",
        b'{"message":"a\\ud800b"}': "a?b",
        b'{"message":"m","a":NaN}': "m",
        b'{"message":"m","a":1' + b"0" * 400 + b"}": "m",
        b'{"message":"m","message":"n"}': "n",
        b'{"message":"m","a":["\\udc00"]}': "m",
        b'{"message":"m","a":' + b"[" * 900 + b"]" * 900 + b"}": "m",
    }
    for document, message in documents.items():
        assert (await event_of(document)).message == message, document
    answer = await answered({"index": {}}, b"[" * 5000, {"index": {}}, b'{"a":' * 5000)
    assert [item["index"]["status"] for item in answer["items"]] == [400, 400]


@pytest.mark.parametrize(
    ("document", "message", "dropped"),
    [
        (b'{"message":"' + b"x" * RECORD_BYTES_MAX + b'"}', "xxx", None),
        (b'{"message":"m","a":[' + b",".join([b"[]"] * RECORD_VALUES_MAX) + b"]}", "m", 1),
        (b'{"message":"m","a":{"b":{"c":{"d":"' + b"{" * 2 * RECORD_VALUES_MAX + b'"},"e":2}}}', "m", 1),
        (b'{"a":[' + b",".join([b"[]"] * RECORD_VALUES_MAX) + b"]}", '{"a":[[],[],', 1),
        (b'{"a":"\\ud800","message":"' + b"[\xff" * RECORD_VALUES_MAX + b'"}', "[\ufffd[", None),
        (b'{"message":{"a":[' + b",".join([b"[]"] * RECORD_VALUES_MAX) + b"]}}", '{"message":{"a":[', 1),
        # Too many fields to be looked at: the text is the message
        (b"{" + b",".join(b'"%06d":1' % n for n in range(RECORD_VALUES_MAX + 2)) + b"}", '{"000000":1,', None),
        # What is no JSON too, since nothing of it was read as a whole
        (b'{"message":"m","a":[' + b"[]," * RECORD_VALUES_MAX + b"}", '{"message":"m"', None),
    ],
)
async def test_of_a_vast_document_only_what_has_room_is_read(
    document: bytes, message: str, dropped: int | None
) -> None:
    event = await event_of(document)
    assert event.message.startswith(message)
    assert len(event.message.encode()) <= MESSAGE_BYTES_MAX
    assert (event.attributes or {}).get(DROPPED_KEY) == dropped


@pytest.mark.parametrize(
    "body",
    [
        body_of(*({"index": {"_index": "a"}}, {"message": "m", "@timestamp": "2026-11-26T07:29:53Z"}) * 3000),
        body_of({"index": {}}, {}) + b"\n" * 300_000,
        body_of({"index": {}}, {}) + b"x\n" * 100_000,
        body_of({"index": {}}, b"{" + b",".join(b'"%04d":1' % n for n in range(RECORD_VALUES_MAX - 10)) + b"}") * 20,
        body_of({"index": {}}, b'{"a":' + b"[" * 900 + b"]" * 900 + b"}") * 500,
    ],
)
async def test_a_large_body_is_decoded_in_short_steps(body: bytes) -> None:
    decoding = TimedDecoding(SETTINGS)
    with contextlib.suppress(BodyTooLargeError):
        await decoded(bulk_codec(decoding), Sent(body))
    assert decoding.longest_seconds < 0.1  # some milliseconds, on a machine without other work


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
ACTIONS = st.sampled_from(["index", "create", "update", "delete", "odd"])
TARGETS = st.dictionaries(st.sampled_from(["_index", "_id", "_type", "routing"]), JSON_VALUES, max_size=3)
LINES = st.one_of(
    st.binary(max_size=40),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.tuples(ACTIONS, TARGETS).map(lambda pair: json.dumps({pair[0]: pair[1]}).encode()),
    st.just(b'{"index":{}}'),
)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINES, max_size=12), query=st.text(max_size=30), is_gzipped=st.booleans())
async def test_nothing_in_a_body_is_a_defect(lines: list[bytes], query: str, is_gzipped: bool) -> None:
    body = b"\n".join(lines)
    sent = Sent(gzip.compress(body) if is_gzipped else body, {}, f"/a%FF/_bulk?filter_path={query}")
    try:
        batch, response = await accepted(CODEC, sent)
    except (RequestError, OverloadedError):
        return
    answer = json.loads(response.body)
    if list(answer) == ["took", "errors", "items"]:
        assert len(answer["items"]) == len(batch.events) + batch.rejected
        assert answer["errors"] == (batch.rejected > 0)


# --- What clients ask before they send ----------------------------------------------------------------------------

BROWSER = {
    "accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36",
}


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"accept": "application/vnd.elasticsearch+json; compatible-with=9"}, VERSIONS["9"]),
        ({"accept": "application/vnd.elasticsearch+json; compatible-with=8"}, VERSIONS["8"]),
        ({"accept": "application/json", "user-agent": "Elastic-filebeat/8.19.2 (linux; amd64)"}, VERSIONS["8"]),
        ({"user-agent": "Vector/0.50.0 (x86_64-unknown-linux-gnu)"}, VERSIONS["8"]),
        ({"user-agent": "logstash/8.19.0 (OS=Linux) logstash-output-elasticsearch/11.22.9"}, VERSIONS["8"]),
        ({"user-agent": "opensearch-py/2.8.0 (Python 3.11.7)"}, "2.19.0"),
        ({"user-agent": "logstash/8.19.0 (OS=Linux) logstash-output-opensearch/2.0.3"}, "2.19.0"),
        (BROWSER, None),
        ({"accept": "text/html,application/json"}, None),
        ({"accept": "*/*", "user-agent": "curl/8.5.0"}, None),
        ({}, None),
    ],
)
def test_the_root_answers_clients_with_a_version(headers: Mapping[str, str], version: str | None) -> None:
    response = version_response(Head(headers, "/"))
    if version is None:
        assert response is None
        return
    assert response is not None
    document = json.loads(response.body)
    assert (response.status, document["version"]["number"]) == (200, version)
    assert (document["version"].get("distribution") == "opensearch") == ("opensearch" in headers.get("user-agent", ""))
    assert response.headers["x-elastic-product"] == "Elasticsearch"


def inquiry(path: str, health: Health = Health.HEALTHY) -> Response:
    """The answer to an inquiry."""
    (found,) = [one for one in bulk_inquiries(lambda: health) if one.path == path]
    return found.answer(Head({}, path))


def test_a_shipper_that_asks_for_a_license_finds_it_active() -> None:
    response = inquiry("/_license")
    assert json.loads(response.body) == {"license": {"status": "active", "type": "oss"}}
    assert response.headers["x-elastic-product"] == "Elasticsearch"


@pytest.mark.parametrize(
    ("health", "status"),
    [
        (Health.HEALTHY, "green"),
        (Health.DEGRADED, "yellow"),
        (Health.CRITICAL, "red"),
        (Health.UNKNOWN, "red"),
    ],
)
def test_the_health_of_the_cluster_is_that_of_the_system(health: Health, status: str) -> None:
    response = inquiry("/_cluster/health", health)
    assert json.loads(response.body) == {"cluster_name": "sluice", "status": status, "timed_out": False}
