"""The expected result of ingest's decoders for any bytes, computed by independent parsers.

`judge` takes one input: a letter for what is to be decoded (J: a JSON body, N: NDJSON, G: gzip, H: the head of a
request, C: a body in chunks, P: a body of another protocol, D: any content coding), then the bytes. It raises
WrongError if ingest accepts invalid JSON, calls other bytes JSON, changes events, sees a different length than other
parsers, or fails without an error code.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

import cramjam
import h11
from prometheus_client import CollectorRegistry
from sanic.exceptions import BadRequest, ExpectationFailed

from checks.hostile.protocols import WrongError, judge_protocol
from checks.hostile.protocols import must as _must
from ingest.account_counter import AccountCounter
from ingest.accounts import Client
from ingest.app import EVENTS_PATH
from ingest.codecs import large_json
from ingest.codecs.event_bodies import parse_body
from ingest.codecs.events import events_codec
from ingest.codecs.media_type import BodyKind
from ingest.codecs.strict_json import DEPTH_MAX
from ingest.codecs.turns import run
from ingest.errors import BodyTooLargeError, InvalidEventsError, MalformedBodyError, RequestError, row_of
from ingest.framing import GZIP_MEMBERS_MAX, found_coding, inflate, inflate_in_steps
from ingest.held_bodies import HeldBodies
from ingest.http import request as http1
from ingest.http.early_rejection import EarlyRejection
from ingest.http.request_id import RequestIds
from pipeline.event import SEVERITIES, SEVERITY_ALIASES, Event, decode_record, encode_record, record_head
from pipeline.metrics import IngestMetrics
from pipeline.names import LEVEL_HIGHEST, Level
from pipeline.settings import Settings

EVENTS_MAX: Final = 20
INFLATED_MAX: Final = 1 << 16
_KINDS: Final = b"JNGHCPD"  # the letters of _JUDGES
CHUNKED_HEAD: Final = (
    b"POST /api/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def judge(data: bytes) -> str:
    """The outcome: `events`, or the code of the refusal. Raises WrongError."""
    if not data:
        return "nothing"
    return _JUDGES[kind_of(data)](data[1:])


def kind_of(data: bytes) -> str:
    """The letter of a non-empty input: its first byte, or, if that is no letter, a letter chosen by that byte."""
    return chr(data[0]) if data[0] in _KINDS else chr(_KINDS[data[0] % len(_KINDS)])


# --- JSON -----------------------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*(?:
    (?P<open>[\[{]) | (?P<close>[\]}]) | (?P<comma>,) | (?P<colon>:) |
    (?P<text>"(?>(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)") |
    (?P<value>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?|true|false|null) |
    (?P<end>\Z)
    )""",
    re.VERBOSE,
)


def is_json(raw: bytes) -> bool:
    """Whether bytes are one JSON value in UTF-8 by the grammar of RFC 8259, of any depth."""
    try:
        text = raw.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return False
    stack: list[str] = []
    wants = {"value"}  # what may come next: value, key, colon, comma, close, end
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            return False
        at = match.end()
        kind = match.lastgroup
        if kind == "end":
            return "end" in wants
        if kind == "open" and "value" in wants:
            stack.append(match["open"])
            wants = {"value", "close"} if match["open"] == "[" else {"key", "close"}
        elif kind == "close" and "close" in wants and stack[-1] + match["close"] in ("[]", "{}"):
            stack.pop()
            wants = {"comma", "close"} if stack else {"end"}
        elif kind == "comma" and "comma" in wants:
            wants = {"value"} if stack[-1] == "[" else {"key"}
        elif kind == "colon" and "colon" in wants:
            wants = {"value"}
        elif kind == "text" and "key" in wants:
            wants = {"colon"}
        elif kind in ("text", "value") and "value" in wants:
            wants = {"comma", "close"} if stack else {"end"}
        else:
            return False


def depth(raw: bytes) -> int:
    """The greatest depth of the brackets outside of strings."""
    deepest = level = 0
    in_text = escaped = False
    for byte in raw:
        if in_text:
            if escaped:
                escaped = False
            elif byte == ord("\\"):
                escaped = True
            elif byte == ord('"'):
                in_text = False
        elif byte == ord('"'):
            in_text = True
        elif byte in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif byte in b"]}":
            level -= 1
    return deepest


def _judge_body(raw: bytes, kind: BodyKind) -> str:
    """The usual reader and the one for large bodies give the same, correct outcome."""
    outcome = _judge_reading(raw, kind)
    large = _read_as_large(raw, kind)
    _must(outcome == large, f"{outcome}, and {large} if it were large", raw)
    return outcome


def _read_as_large(raw: bytes, kind: BodyKind) -> str:
    """The outcome of the reader for large bodies, for a body of any size."""
    usual, large_json.LARGE_BYTES = large_json.LARGE_BYTES, 0  # type: ignore[misc]  # for this thread's tests
    try:
        run(large_json.check_large(raw, kind, events_max=EVENTS_MAX))
    except RequestError as error:
        return row_of(error).code
    finally:
        large_json.LARGE_BYTES = usual  # type: ignore[misc]
    return "events"


def _judge_reading(raw: bytes, kind: BodyKind) -> str:
    parts = [raw] if kind is BodyKind.JSON else [line for line in raw.split(b"\n") if line and not line.isspace()]
    are_json = all(map(is_json, parts))
    try:
        events = parse_body(raw, kind, events_max=EVENTS_MAX)
    except MalformedBodyError as error:
        is_deep = any(depth(part) > DEPTH_MAX for part in parts)
        _must(not are_json or is_deep, f"JSON is refused as none ({error})", raw)
        _must(error.byte is None or 0 <= error.byte <= len(raw), f"byte {error.byte} is not in the body", raw)
        lines = raw.count(b"\n") + 1
        _must(error.line is None or 1 <= error.line <= lines, f"line {error.line} is not in the body", raw)
        return row_of(error).code
    except InvalidEventsError as error:
        _must(are_json, "what is not JSON is refused for its fields", raw)
        json.dumps(error.details, default=vars_of).encode()  # ingest can put it into an answer
        return row_of(error).code
    except BodyTooLargeError as error:
        _must(len(parts) > EVENTS_MAX or (are_json and _count(raw) > EVENTS_MAX), "too many of few", raw)
        return row_of(error).code
    except RequestError as error:
        raise WrongError(f"{error!r} is no answer to a body: {raw!r}") from error
    _must(are_json, "what is not JSON is taken", raw)
    sent = [json.loads(part, parse_float=Decimal) for part in parts]
    if kind is BodyKind.JSON and isinstance(sent[0], list):
        sent = sent[0]
    _must(len(sent) == len(events), f"{len(events)} events of {len(sent)}", raw)
    for given, event in zip(sent, events, strict=True):
        _judge_event(given, event)
    _judge_ids(events, raw)
    return "events"


def _judge_ids(events: list[Event], raw: bytes) -> None:
    """Events with one id are the same event."""
    seen: dict[str, str] = {}
    for event in events:
        if event.event_id is not None and event.event_id != "given":
            attributes = event.attributes
            content = repr([
                event.correlation_id, event.severity, event.message, event.source, event.timestamp,
                None if attributes is None else sorted((k, str(v).removesuffix(".0")) for k, v in attributes.items()),
            ])  # fmt: skip
            _must(seen.setdefault(event.event_id, content) == content, f"two events of one id {event.event_id}", raw)


def vars_of(problem: Any) -> Any:
    """A problem as a JSON object."""
    return {name: getattr(problem, name) for name in ("index", "field", "reason")}


def _count(raw: bytes) -> int:
    found = json.loads(raw)
    return len(found) if isinstance(found, list) else 1


def _judge_event(given: Any, event: Event) -> None:
    """An accepted event equals the one that was sent, keeps the rules, and survives the log unchanged."""
    for text in _texts(given):
        _must("\0" not in text, "NUL", given)
        _must(text.isascii() or text.encode("utf-8", "replace").decode() == text, "half of a surrogate pair", given)
    exact = given.get("attributes") or {}
    if exact:
        given = {**given, "attributes": {k: float(v) if isinstance(v, Decimal) else v for k, v in exact.items()}}
    word = given["severity"].upper()
    expected = {
        "correlationId": event.correlation_id,
        "message": event.message,
        "source": event.source,
        "timestamp": event.timestamp,
        "eventId": event.event_id,
        "attributes": event.attributes,
    }
    _must(
        {**{"eventId": None, "attributes": None}, **given} == {**expected, "severity": given["severity"]},
        "other",
        given,
    )
    _must(event.severity == SEVERITY_ALIASES.get(word, word) and event.severity in SEVERITIES, "severity", given)
    _must(type(given["timestamp"]) is int and 0 <= event.timestamp < 253_402_300_800_000, "timestamp", given)
    _must(1 <= len(event.correlation_id) <= 128 and 1 <= len(event.source) <= 256, "lengths", given)
    _must(event.event_id is None or 1 <= len(event.event_id) <= 64, "id's length", given)
    _must(len(event.message.encode()) <= 65_536, "message's length", given)
    for name, value in (event.attributes or {}).items():
        _must(isinstance(value, str | int | float | bool), f"attribute {name}", given)
        if isinstance(value, float):
            _must(repr(value) != "-0.0" and Decimal(repr(value)) == exact[name], f"number {name}", given)
        _must(not isinstance(value, int) or -(2**63) <= value < 2**63, f"attribute {name}", given)
    event.event_id = event.event_id or "given"
    back = decode_record(encode_record(event, record_head(7, "a-1")))
    for name in ("correlation_id", "severity", "message", "source", "timestamp", "event_id", "attributes"):
        _must(getattr(back, name) == getattr(event, name), f"{name} through the log", given)


def _texts(given: dict[str, Any]) -> Iterator[str]:
    """Every string of an event, names of attributes included."""
    for value in given.values():
        if isinstance(value, dict):
            yield from value
            yield from (one for one in value.values() if isinstance(one, str))
        elif isinstance(value, str):
            yield value


# --- gzip -----------------------------------------------------------------------------------------------------------


# Headers of members with reserved bits (an error in RFC 1952), or with their own checksum. zlib checks both; the
# standard library checks neither.
_STRICT_GZIP: Final = re.compile(
    rb"\x1f\x8b\x08[^\x00\x01\x04\x05\x08\x09\x0c\x0d\x10\x11\x14\x15\x18\x19\x1c\x1d]", re.DOTALL
)


def _judge_gzip(packed: bytes) -> str:
    try:
        found = inflate(packed, INFLATED_MAX)
    except MalformedBodyError as error:
        whole = _inflated(packed)
        is_lenient = packed.count(b"\x1f\x8b") > GZIP_MEMBERS_MAX or _STRICT_GZIP.search(packed) is not None
        _must(whole is None or not packed or is_lenient, "gzip is refused", packed)
        return row_of(error).code
    except BodyTooLargeError as error:
        whole = _inflated(packed)
        # It may also end early or be broken beyond the limit: ingest does not read that part.
        _must(whole is None or len(whole) > INFLATED_MAX, "a small stream is too large", packed)
        return row_of(error).code
    _must(found == _inflated(packed), "gzip inflates to something else", packed)
    return "inflated"


def _inflated(packed: bytes) -> bytes | None:
    """The content by the standard library; None if it refuses."""
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        return None


# --- Any content coding ---------------------------------------------------------------------------------------------


def _judge_coding(packed: bytes) -> str:
    """Ingest finds the coding by a body's first bytes, and inflates it to the same bytes as other decoders."""
    coding = found_coding(packed, declared="gzip, deflate") or "deflate"
    try:
        found = run(inflate_in_steps(packed, coding, INFLATED_MAX, HeldBodies(1 << 30).begin()))
    except MalformedBodyError as error:
        if coding == "gzip":
            is_lenient = packed.count(b"\x1f\x8b") > GZIP_MEMBERS_MAX or _STRICT_GZIP.search(packed) is not None
            _must(_inflated(packed) is None or is_lenient, "gzip is refused", packed)
        elif coding == "zlib":
            _must(_of_zlib(packed) in (None, _MORE), "zlib is refused", packed)
        else:
            _must(coding == "zstd", "what may be no deflate is refused", packed)
        return row_of(error).code
    except BodyTooLargeError as error:
        return row_of(error).code
    if coding == "gzip":
        # Ingest also accepts zlib after the first member; the standard library refuses it.
        _must(_inflated(packed) in (None, found), "gzip inflates to something else", packed)
    elif coding == "zlib":
        _must(_of_zlib(packed) in (_MORE, found), "zlib inflates to something else", packed)
    elif coding == "deflate":
        inflated = _of_zlib(packed, -15)
        _must(found == (packed if inflated in (None, _MORE) else inflated), "deflate is something else", packed)
        return "plain" if found == packed else "inflated"
    else:
        _must(bytes(cramjam.zstd.decompress(packed)) == found, "zstd inflates to something else", packed)
    return "inflated"


_MORE: Final = b"something follows"


def _of_zlib(packed: bytes, window: int = zlib.MAX_WBITS) -> bytes | None:
    """The content of one stream by zlib; None if zlib refuses it, _MORE if bytes follow it."""
    reader = zlib.decompressobj(window)
    try:
        found = reader.decompress(packed)
    except zlib.error:
        return None
    if not reader.eof:
        return None
    return _MORE if reader.unused_data.strip(b"\0") else found


# --- The head of a request ------------------------------------------------------------------------------------------


def _judge_head(data: bytes) -> str:
    """Ingest's two readers and h11 must see the same request: a difference allows request smuggling."""
    framing = _read_by_parser(data)
    length = _read_by_early_rejection(data)
    if length is not None:
        _must(framing == ("length", length), f"a refusal sees {length} bytes of body, the parser {framing}", data)
    if framing[0] == "refused":
        return "bad_request"
    other = _read_by_h11(data)
    _must(framing == other, f"ingest sees {framing}, h11 {other}", data)
    return framing[0]


def _read_by_parser(data: bytes) -> tuple[str, int]:
    """How the body is sent: (`length` or `chunked`, bytes), or `refused`."""
    end = data.find(b"\r\n\r\n")
    match = http1._HEAD.fullmatch(data[: end + 4]) if end >= 0 else None
    if match is None:
        return "refused", 0
    _, _, version, lines = match.groups()
    fields = http1._HEADER.findall(lines.decode("utf-8", "surrogateescape"))
    headers = {name.lower(): value.strip(" \t") for name, value in reversed(fields)}
    reader: Any = SimpleNamespace(request_body=None, expecting_continue=False, disarm=lambda: None)
    try:
        http1.IngestHttp._expect_body(reader, fields, headers, is_new=version == b"1.1")
    except (BadRequest, ExpectationFailed):
        return "refused", 0
    return ("chunked", 0) if reader._is_chunked else ("length", reader._body_left)


def _read_by_early_rejection(data: bytes) -> int | None:
    """The length of the body that an early refusal would discard; None if it leaves the request to the parser."""
    if not data.startswith(_REJECTION.begin):
        return None
    read = _REJECTION.read(data)
    if read is None:
        return None
    found = read.match(data)
    if found is None:
        raise WrongError(f"a head is not like itself: {data!r}")
    end, length, _ = found
    _must(end == data.find(b"\r\n\r\n") + 4, f"a refusal sees a head of {end} bytes", data)
    return length if length <= _REJECTION.bytes_max else None


class _Open:
    """A gate that refuses no request."""

    has_levels = False
    admits_all_levels = True

    def is_open(self) -> bool:
        return True

    def level_of(self, priority: str | None, level_max: Level = LEVEL_HIGHEST) -> Level:
        return LEVEL_HIGHEST

    def seconds_closed(self, level: Level = LEVEL_HIGHEST) -> float:
        return 0.0

    def seconds_closed_for(self, tally: AccountCounter) -> float:
        return 0.0

    def refusal(self, level: Level = LEVEL_HIGHEST, tally: AccountCounter | None = None) -> None:
        return None

    def note_rejected(self, level: Level | None) -> None:
        pass


_REJECTION: Final = EarlyRejection(
    EVENTS_PATH,
    events_codec(Settings()),
    gate=_Open(),
    metrics=IngestMetrics(CollectorRegistry()),
    request_ids=RequestIds(),
    bytes_max=Settings().body_bytes_max,
)


def _read_by_h11(data: bytes) -> tuple[str, int]:
    """The same head as h11 reads it."""
    head = data[: data.find(b"\r\n\r\n") + 4]
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return f"refused: {error}", 0
    if not isinstance(event, h11.Request):
        return f"no request: {event!r}", 0
    names = dict(event.headers)
    if b"transfer-encoding" in names:
        return "chunked", 0
    return "length", int(names.get(b"content-length", b"0"))


# --- A body in chunks -----------------------------------------------------------------------------------------------


class _CutError(Exception):
    """The body is not complete."""


class _Chunks(http1.IngestHttp):
    """Reads a body in chunks from the given bytes; no more bytes come."""

    def __init__(self, data: bytes) -> None:  # nothing of a connection is needed
        self.recv_buffer = bytearray(data)
        self.request_body = http1._COMING
        self.expecting_continue = False
        self.keep_alive = True
        self._deadline = None
        self._body_left = 0
        self._is_chunked, self._chunks = True, 0
        self._client = cast(Client, SimpleNamespace(has_keys=False))

    async def _receive_in_time(self) -> None:
        raise _CutError


def _judge_chunks(data: bytes) -> str:
    """An accepted body has the same bytes and the same end for h11. If ingest waits for more and h11 does not (h11
    accepts a bare line feed at the end), ingest must refuse any bytes that follow.
    """
    outcome, found = _read_chunks(data)
    other = _chunks_by_h11(data)
    if outcome == "chunks":
        _must(found == other, f"ingest reads {found}, h11 {other}", data)
    if outcome == "cut" and other is not None:
        for more in (b"POST ", b"\r\n", b"\n\n"):
            _must(_read_chunks(data + more)[0] == "bad_request", f"ingest waits for {more!r}, h11 reads {other}", data)
    return outcome


def _read_chunks(data: bytes) -> tuple[str, tuple[bytes, bytes] | None]:
    """The outcome as ingest reads it; for an accepted body also (body, bytes after it)."""
    reader = _Chunks(data)
    reading = reader.receive_body(INFLATED_MAX, HeldBodies(INFLATED_MAX).begin())
    try:
        for _ in range(len(data) + 1):
            if reading.send(None) is not None:  # None: only a turn for other connections
                break
    except StopIteration as end:
        return "chunks", (bytes(end.value), bytes(reader.recv_buffer))
    except _CutError:
        return "cut", None
    except BadRequest:
        _must(not reader.keep_alive, "the connection goes on behind chunks that can't be read", data)
        return "bad_request", None
    except BodyTooLargeError as error:
        return row_of(error).code, None
    raise WrongError(f"ingest waits for something else than bytes: {data!r}")


def _chunks_by_h11(data: bytes) -> tuple[bytes, bytes] | None:
    """(body, bytes after it) as h11 reads it; None if h11 refuses it or finds no end."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
    connection.receive_data(CHUNKED_HEAD + data)
    body = b""
    try:
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Data):
                body += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    return body, connection.trailing_data[0]


_JUDGES: Final[dict[str, Callable[[bytes], str]]] = {
    "J": partial(_judge_body, kind=BodyKind.JSON),
    "N": partial(_judge_body, kind=BodyKind.NDJSON),
    "G": _judge_gzip,
    "H": _judge_head,
    "C": _judge_chunks,
    "P": judge_protocol,
    "D": _judge_coding,
}
