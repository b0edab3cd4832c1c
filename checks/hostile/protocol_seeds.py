"""The fuzzer's first inputs for other protocols: bodies as their clients send them, and some edge cases."""

import gzip
import zlib
from collections.abc import Iterator

import msgspec
import zstandard
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData

_TIME = 1_700_000_000_123_456_789
_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_RECORD = (
    '{"time":"2026-11-26T12:00:00.123456789Z","level":"warn","msg":"paid","trace_id":"@trace","http":{"code":201}}'
)
_WORDS = {
    "@record": _RECORD,
    "@trace": _TRACE,
    "@time": str(_TIME),
    "@half": "\\ud800",  # of a surrogate pair
    "@deep": "[" * 1000 + "]" * 1000,  # with the text around it, within the fuzzer's limit
    "@long": "s" * 300,
    "@many": ",".join(f'"k{number}":{number}' for number in range(70)),
}

_LINES = (
    "@record",
    "[@record,@record]",
    '{"logs":[@record,3,"text",null]}',
    "@record\n@record\r\n\nplain text",
    '{\n "message": "pretty",\n "n": [1, 2.5, -0.0, 1e400, 123456789012345678901234567890]\n}{"a":{}}',
    '{"specversion":"1.0","id":"7","source":"/s","data":{"msg":"x"},"traceparent":"00-@trace-00f067aa0ba902b7-01"}',
    '{"message":"half @half","nul":"\\u0000"}',
    '[{"m":"a"},{"d":@deep},{"m":"b"}]',
    '{"logger":"@long","msg":"x"}',
    "{@many}",
    '{"level":30,"time":1700000000123,"pid":1,"hostname":"h","msg":"pino"}',
    '{"logs":[{"a":1},{"b":nope}]}',
    "[not json",
    "\ufeff[]",
    '{"NaN":NaN,"inf":-Infinity}',
)
_FORM = ("name=app&msg=paid+100%25&levelname=ERROR&created=1700000000.5&exc_text=None", "@record")
_OTLP = (
    """{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"scopeLogs":[
{"scope":{"name":"s","version":"1"},"logRecords":[{"timeUnixNano":"@time","severityNumber":13,"severityText":"WARN2",
"body":{"stringValue":"paid"},"attributes":[{"key":"n","value":{"intValue":"3"}},{"key":"a","value":{"arrayValue":
{"values":[{"doubleValue":1.5},{"kvlistValue":{"values":[{"key":"k","value":{"bytesValue":"AP8="}}]}}]}}}],"flags":1,
"traceId":"@trace","spanId":"00f067aa0ba902b7"}]}]}]}""",
    "{}",
    '{"resource_logs":[{"scope_logs":[{"log_records":[{"time_unix_nano":5,'
    '"severity_number":"SEVERITY_NUMBER_INFO3"}]}]}]}',
    '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{},null,5,{"body":{"stringValue":"@half"}}]}]}]}',
    '{"resourceLogs":[{"scopeLogs":[{"logRecords":[@deep]}]}]}',
)
_BULK = (
    '{"index":{"_index":"logs","_id":"1"}}\n@record\n{"create":{}}\n@record\n',
    '{"delete":{"_id":"1"}}\n{"update":{"_id":1.5}}\n{"doc":{}}\n{"index":{"_index":null}}\nno json\n{"create":{}}\n',
    '{"index":{}}\r\n{"deep":@deep}\r\n\n{"index":{},"create":{}}\n',
)
_LOKI = (
    '{"streams":[{"stream":{"app":"shop","level":"info"},"values":[["@time","line"],["1","{\\"level\\":\\"error\\"}",'
    '{"trace_id":"t"}],[null,5],7]}]}',
    '{"streams":[{"labels":"{a=\\"b\\", c=`d`}","entries":[{"ts":"2026-11-26T12:00:00Z","line":"x"}]},{"stream":5}]}',
    '{"streams":[{"values":[["1","@half"]]}]}',
    '{"streams":[{"values":[["1",@deep]]}]}',
)
_HEC = (
    '{"time":1700000000.123,"host":"h","source":"s","event":{"message":"paid","level":"INFO"},"fields":{"a":"b"}}'
    '{"event":"text"}\n[{"event":1},{"time":"x"}]',
    '{"event":"half @half"}{"cut',
    '{"event":@deep}{"event":1}',
)
_GELF = (
    '{"version":"1.1","host":"h","short_message":"paid","timestamp":1700000000.123,"level":4,"_app":"shop","_n":2}',
    '{"short_message":"a"}\0{"full_message":"b\\nc"}\n[1]',
    '[{"m":"a"},5,{"d":@deep}]',
)


def _filled(text: str) -> bytes:
    """The text with its placeholders filled in."""
    for word, content in _WORDS.items():
        text = text.replace(word, content)
    return text.encode()


def protocol_seeds() -> Iterator[bytes]:
    """Inputs as `checks.hostile.oracle.judge` takes them."""
    for letter, texts in (
        ("t", _LINES), ("v", _LINES[:3]), ("f", _FORM), ("j", _OTLP), ("e", _BULK), ("l", _LOKI), ("w", _LOKI),
        ("c", _HEC), ("r", (_HEC[0], *_LINES)), ("g", _GELF),
    ):  # fmt: skip
        for text in texts:
            yield b"P" + letter.encode() + _filled(text)
    for value in ({"message": "a", "time": 1.5, 3: b"\xff"}, [1, {"logs": []}], {"logs": [{"msg": "b"}, "c"]}):
        yield b"Pm" + msgspec.msgpack.encode(value)
    for body in (_otlp_protobuf(), _otlp_protobuf(b"\xff")):
        yield b"Pp" + body
        yield b"Pp" + gzip.compress(body, mtime=0)
    loki = _loki_protobuf()
    yield b"Ps" + loki
    yield b"Pw" + bytes([len(loki), (len(loki) - 1) << 2]) + loki  # one literal of snappy
    yield b"Pe" + zstandard.compress(_filled(_BULK[0]))
    yield b"Pg" + zlib.compress(_GELF[0].encode())
    yield b"Pt" + b"\n".join([b"x"] * 21)
    for pack in (gzip.compress, zlib.compress, zstandard.compress):
        for content in (b"", b"content", b" " * 70_000):
            packed = pack(content)
            yield b"D" + packed
            yield b"D" + packed[:-2]
            yield b"D" + packed + packed
    yield b"Dplain"


def _otlp_protobuf(text: bytes = b"paid") -> bytes:
    """A request with one record; `text` is its message, and need not be UTF-8."""
    message = LogsData()
    resource_logs = message.resource_logs.add()
    resource_logs.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name = "s"
    record = scope_logs.log_records.add(time_unix_nano=_TIME, severity_text="WARN", trace_id=bytes.fromhex(_TRACE))
    record.body.string_value = "x" * len(text)
    record.attributes.add(key="n").value.array_value.values.add(int_value=3)
    return message.SerializeToString().replace(b"x" * len(text), text, 1)


def _loki_protobuf() -> bytes:
    """A push request with one entry and its metadata."""
    metadata = b"\x0a\x01k\x12\x01v"
    entry = b"\x0a\x02\x08\x05\x12\x04line\x1a" + bytes([len(metadata)]) + metadata
    labels = b'{a="b"}'
    stream = b"\x0a" + bytes([len(labels)]) + labels + b"\x12" + bytes([len(entry)]) + entry
    return b"\x0a" + bytes([len(stream)]) + stream
