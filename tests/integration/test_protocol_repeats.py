"""Every protocol of others, into PostgreSQL: five records, whose answer is lost and which come again, are five rows."""

import contextlib
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import cramjam
import msgspec
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from checks.loadgen.proxy import Proxy
from checks.testbed.database import ask
from checks.testbed.wire import request, send
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from support.loki import entry, push, stream
from support.records import new_log_id, nothing
from support.running_ingest import eventually, running_ingest
from support.sinks import sink_settings

NS = 1_795_677_435_213_456_789
COUNT = 5
BULK = "/_bulk"
COLLECTOR = "/services/collector"
LINES = "/api/logs?format=lines"
LOKI = "/loki/api/v1/push"
OTLP = "/v1/logs"
PROTOBUF = "application/x-protobuf"


def _times(texts: Sequence[str]) -> list[tuple[float, str]]:
    return [(NS / 10**9 + number, text) for number, text in enumerate(texts)]


def _lines(texts: Sequence[str]) -> bytes:
    return b"\n".join(json.dumps({"time": time, "msg": text}).encode() for time, text in _times(texts))


def _logs(texts: Sequence[str]) -> bytes:
    return json.dumps({"logs": [{"time": time, "msg": text} for time, text in _times(texts)]}).encode()


def _msgpack(texts: Sequence[str]) -> bytes:
    return msgspec.msgpack.encode([{"dt": time, "message": text} for time, text in _times(texts)])


def _bulk(texts: Sequence[str]) -> bytes:
    return b"".join(b'{"create":{"_index":"logs"}}\n%b\n' % line for line in _lines(texts).split(b"\n"))


def _bulk_with_ids(texts: Sequence[str]) -> bytes:
    lines = ((json.dumps({"index": {"_id": text}}), json.dumps({"message": text})) for text in texts)
    return "".join(f"{action}\n{document}\n" for action, document in lines).encode()


def _events(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"time": time, "event": text}) for time, text in _times(texts)).encode()


def _gelf(texts: Sequence[str]) -> bytes:
    lines = (json.dumps({"host": "h", "timestamp": time, "short_message": text}) for time, text in _times(texts))
    return zlib.compress("\n".join(lines).encode())


def _loki(texts: Sequence[str]) -> bytes:
    values = [[str(NS + number), text] for number, text in enumerate(texts)]
    return json.dumps({"streams": [{"stream": {"app": "shop"}, "values": values}]}).encode()


def _loki_in_snappy(texts: Sequence[str]) -> bytes:
    entries = (entry(NS + number, text) for number, text in enumerate(texts))
    return bytes(cramjam.snappy.compress_raw(push(stream('{app="shop"}', *entries))))


def _otlp(texts: Sequence[str]) -> bytes:
    records = [{"timeUnixNano": str(NS + n), "body": {"stringValue": text}} for n, text in enumerate(texts)]
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).encode()


def _otlp_in_protobuf(texts: Sequence[str]) -> bytes:
    return gzip.compress(ParseDict(json.loads(_otlp(texts)), ExportLogsServiceRequest()).SerializeToString())


@dataclass(frozen=True)
class Door:
    """An address, and how a client sends texts to it."""

    path: str
    body_of: Callable[[Sequence[str]], bytes]
    status: int
    media_type: str | None = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


DOORS = (
    Door(LINES, _lines, 202, "application/x-ndjson"),
    Door("/api/logs/lines", _logs, 202),
    Door(LINES, _msgpack, 202, "application/msgpack"),
    Door(BULK, _bulk, 200, "application/vnd.elasticsearch+x-ndjson; compatible-with=9"),
    Door("/logs/_bulk", _bulk_with_ids, 200),
    Door(f"{COLLECTOR}/event", _events, 200, None),
    Door(f"{COLLECTOR}/raw?source=shop", _lines, 200, None),
    Door("/gelf", _gelf, 202, None, {"Content-Encoding": "gzip,deflate"}),
    Door(LOKI, _loki, 204),
    Door(LOKI, _loki_in_snappy, 204, PROTOBUF),
    Door(OTLP, _otlp, 200),
    Door(OTLP, _otlp_in_protobuf, 200, PROTOBUF, {"Content-Encoding": "gzip"}),
)


def _has_swallowed(proxy: Proxy, answers: int) -> bool:
    return proxy.counts.swallowed == answers


def test_what_comes_again_after_a_lost_answer_is_stored_once_by_each_protocol(database_url: str) -> None:
    texts = {number: [f"door {number} record {n}" for n in range(COUNT)] for number in range(len(DOORS))}
    with running_ingest() as edge, contextlib.ExitStack() as stack:
        # Given a connection that is cut as soon as a body is stored, for each protocol
        proxy = Proxy(edge.port).start()
        stack.callback(proxy.stop)
        for number, door in enumerate(DOORS):
            body = door.body_of(texts[number])
            sent = request(body, path=door.path, content_type=door.media_type, headers=door.headers)
            proxy.swallow(b"POST", b"HTTP/1.1 20", times=1)
            with pytest.raises((OSError, EOFError)):
                send(proxy.port, sent)
            eventually(partial(_has_swallowed, proxy, number + 1), "it is counted")
            # When the client sends the same bytes again
            assert send(proxy.port, sent, has_body=door.status != 204).status == door.status, door
        assert len(edge.records()) == 2 * COUNT * len(DOORS)
        # And all of the log is drained
        settings = sink_settings(database_url)
        migrate(settings)
        sink = stack.enter_context(contextlib.closing(PostgresSink(settings)))
        log_id = new_log_id()
        for partition in range(edge.settings.log_partitions):
            offset = 0
            while (batch := edge.memory_log.read(partition, offset, records_max=1000, wait_seconds=0)) is not None:
                sink.store(log_id, partition, offset, batch, before_commit=nothing)
                offset = batch.next_offset
    # Then PostgreSQL has each record once, with its time, and nothing is a dead letter
    rows = ask(database_url, "SELECT message, (extract(epoch FROM event_time) * 1000)::bigint FROM log_events")
    assert Counter(message for message, _ in rows) == Counter(text for group in texts.values() for text in group)
    without_time = texts[[door.body_of for door in DOORS].index(_bulk_with_ids)]
    for message, time in rows:
        assert message in without_time or NS // 10**6 <= time <= NS // 10**6 + 1000 * COUNT
    assert ask(database_url, "SELECT count(*) FROM dead_letters") == [(0,)]
