"""The bulk API of Elasticsearch and OpenSearch: `POST /_bulk` and `POST /{index}/_bulk`.

A body has two lines for each document: an action, and the document itself. `index` and `create` add a document. Sluice
only adds events, so `update` and `delete` are errors of their items, as is a document that is no JSON. All other
documents of the body are stored.

Shippers ask for version, license and health before they send. They get what they need, and nothing is claimed that
Sluice does not do: it has no indices, templates or policies. docs/protocols/elasticsearch.md has the clients.
"""

import re
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from ingest.errors import MalformedBodyError, error_response, row_of
from ingest.framing import without_mark
from ingest.protocols.decoding import Decoding
from ingest.protocols.filter_path import Path, kept_paths
from ingest.protocols.json_records import Mapped, event_of_json, lines_of, object_of
from ingest.protocols.records import BatchBuilder, id_of
from ingest.types import JSON, Batch, Codec, Decode, Headers, Inquiry, RequestHead, Response, Route
from pipeline.errors import OverloadedError, SluiceError
from pipeline.event import Event
from pipeline.names import Health, ProtocolName

BULK_PATHS: Final = ("/_bulk", "/<index:str>/_bulk")
VERSIONS: Final = {"8": "8.19.0", "9": "9.0.0"}  # of the API that clients are answered with, by what they ask for
OPENSEARCH_VERSION: Final = "2.19.0"
PRODUCT: Final = {"x-elastic-product": "Elasticsearch"}  # the clients of Elasticsearch reject an answer without it
UNIQUE_ID_CHARS: Final = 20  # Elasticsearch's own ids have 20 characters; a shorter id may occur in several indices
ACTION_BYTES_MAX: Final = 64 * 1024
RECORDS_A_STEP: Final = 20
BYTES_A_STEP: Final = 32 * 1024
QUERY_FIELDS_MAX: Final = 100

_COMPATIBLE: Final = re.compile(r"application/vnd\.elasticsearch\+(?:x-nd)?json *; *compatible-with *= *([0-9])", re.I)
_SHIPPERS: Final = re.compile(r"(?:elastic|opensearch|logstash|vector|fluent|go-elasticsearch|\w*beat\b)", re.I)
_FIELDS: Final = (("_index",), ("_id",), ("result",), ("status",), ("error", "type"), ("error", "reason"))
_OPS: Final = ("index", "create", "update", "delete")
# winston-elasticsearch adds fields after it, which Elasticsearch ignores too.
_FIRST_IS_OP: Final = re.compile(rb'\s*\{\s*"(?:%s)"\s*:' % "|".join(_OPS).encode())
_PATHS: Final[tuple[Path, ...]] = (
    ("took",),
    ("errors",),
    *(("items", op, *names) for op in _OPS for names in _FIELDS),
)

_encode = msgspec.json.encode


# --- The body -----------------------------------------------------------------------------------------------------


class Target(msgspec.Struct, rename={"index": "_index", "id": "_id"}):
    """The object of an action. Its other fields mean nothing here."""

    index: str | None = None
    id: str | int | float | bool | None = None


class Action(msgspec.Struct):
    """The line before a document: exactly one of these, and it comes first."""

    index: Target | None = None
    create: Target | None = None
    update: Target | None = None
    delete: Target | None = None


_decode_action = msgspec.json.Decoder(Action).decode


class ItemError(msgspec.Struct, omit_defaults=True, gc=False):
    """Why a document is not stored."""

    type: str | None = None
    reason: str | None = None


class Item(msgspec.Struct, omit_defaults=True, gc=False, rename={"index": "_index", "id": "_id"}):
    """The answer to one action."""

    index: str | None = None
    id: str | None = None
    result: str | None = None
    status: int | None = None
    error: ItemError | None = None


class _Bulk:
    """One bulk request: its events, and the answers to its actions in their order."""

    def __init__(self, builder: BatchBuilder, default_index: str, received_ns: int) -> None:
        self.builder = builder
        self.default_index = default_index
        self.received_ns = received_ns
        self.outcomes: list[tuple[str, str, str | None, Event | ItemError]] = []  # op, index, client's id, result

    def steps(self, body: bytes) -> Generator[None, None, None]:
        """Add the documents of a body, some in each step. Raises MalformedBodyError if it has no action."""
        waiting: tuple[str, Target] | None = None  # the action whose document is next
        has_action = skips = False
        seen = 0
        for count, (number, line) in enumerate(lines_of(without_mark(body)), start=1):
            if waiting is not None:
                self._add(*waiting, line)
                waiting = None
            elif line and not line.isspace():
                action = _action(line)
                if action is None:
                    if not skips:
                        self._reject("index", Target(), f"malformed action in line {number}")
                    skips = not skips  # what follows is most likely its document
                else:
                    has_action, skips = True, False
                    op, target = action
                    if op in ("update", "delete"):
                        self._reject(op, target, f"{op} is not supported: events are only added")
                        skips = op == "update"
                    else:
                        waiting = action
            seen += len(line)
            if count % RECORDS_A_STEP == 0 or seen > BYTES_A_STEP:
                seen = 0
                yield
        if waiting is not None:
            self._reject(*waiting, "there is no document after this action")
        if not has_action:
            raise MalformedBodyError("the body is not a bulk request: no line has an action")

    def _add(self, op: str, target: Target, line: bytes) -> None:
        record = object_of(line)
        if record is None:
            self._reject(op, target, "failed to parse: the document is no JSON object", "document_parsing_exception")
            return
        index = self.default_index if target.index is None else target.index
        own_id = None if target.id is None else _text_of(target.id)
        mapped: Mapped = event_of_json(
            record,
            received_ns=self.received_ns,
            source=index,
            event_id=None if own_id is None else _event_id(index, own_id),
            beside={"_index": index} if index else None,
        )
        self.builder.add(mapped.event, key=mapped.key, has_time=mapped.has_time)
        self.outcomes.append((op, index, own_id, mapped.event))

    def _reject(self, op: str, target: Target, reason: str, kind: str = "illegal_argument_exception") -> None:
        self.builder.reject()
        index = self.default_index if target.index is None else target.index
        own_id = None if target.id is None else _text_of(target.id)
        self.outcomes.append((op, index, own_id, ItemError(kind, reason)))

    def answer(self, took_ms: int, filter_path: str) -> bytes:
        """The body of the answer. Fluent Bit expects this order of fields, and no blanks."""
        kept = kept_paths(filter_path, _PATHS)
        parts = []
        if ("took",) in kept:
            parts.append(b'"took":%d' % took_ms)
        if ("errors",) in kept:
            parts.append(b'"errors":true' if self.builder.rejected else b'"errors":false')
        makers = {op: _maker(kept, op) for op in _OPS}
        items = []
        for op, index, own_id, result in self.outcomes:
            item = makers[op](index, own_id, result)
            if item is not None:
                items.append({op: item})
        if items or len(kept) == len(_PATHS):
            parts.append(b'"items":' + _encode(items))
        return b"{%b}" % b",".join(parts)


def _maker(kept: frozenset[Path], op: str) -> Callable[[str, str | None, Event | ItemError], Item | None]:
    """The function that makes the answers to the actions of a kind, with the fields that are kept."""
    has_index, has_id, has_result, has_status, has_type, has_reason = (
        ("items", op, *names) in kept for names in _FIELDS
    )
    has_success = has_index or has_id or has_result or has_status
    has_error = has_type or has_reason

    def make(index: str, own_id: str | None, result: Event | ItemError) -> Item | None:
        if isinstance(result, Event):
            if not has_success:
                return None
            return Item(
                index if has_index else None,
                (own_id or result.event_id) if has_id else None,
                "created" if has_result else None,
                201 if has_status else None,
            )
        if not (has_index or has_id or has_status or has_error):
            return None
        return Item(
            index if has_index else None,
            own_id if has_id else None,
            None,
            400 if has_status else None,
            ItemError(result.type if has_type else None, result.reason if has_reason else None) if has_error else None,
        )

    return make


def _action(line: bytes) -> tuple[str, Target] | None:
    """The kind and the target of an action; None if the line is none."""
    if len(line) > ACTION_BYTES_MAX or not _FIRST_IS_OP.match(line):
        return None
    try:
        action = _decode_action(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    found = [(op, target) for op in _OPS if (target := getattr(action, op)) is not None]
    return found[0] if len(found) == 1 else None


def _text_of(own_id: str | float | bool) -> str:
    return own_id if isinstance(own_id, str) else _encode(own_id).decode()


def _event_id(index: str, own_id: str) -> str:
    """The event id of a document with an id, which is unique within its index."""
    return id_of(own_id if len(own_id) >= UNIQUE_ID_CHARS else f"{index}/{own_id}")


# --- The codec ----------------------------------------------------------------------------------------------------


def bulk_routes(decoding: Decoding) -> list[Route]:
    """The addresses for documents."""
    codec = bulk_codec(decoding)
    return [Route(path, codec, methods=("POST", "PUT")) for path in BULK_PATHS]


def bulk_codec(decoding: Decoding) -> Codec:
    """The codec of one process."""

    async def batch_of(default_index: str, filter_path: str, media_type: str, body: bytes) -> Batch:
        began = decoding.received_ns
        bulk = _Bulk(BatchBuilder(body, decoding.records_max, default_index), default_index, began)

        def accepted() -> Response:
            took_ms = max(0, decoding.received_ns - began) // 1_000_000
            return Response(200, bulk.answer(took_ms, filter_path), media_type, PRODUCT)

        return await decoding.batch(bulk.builder, bulk.steps(body), accepted)

    def decode(head: RequestHead) -> Decode:
        path, _, query = head.target.partition("?")
        names = path.split("/")
        default_index = unquote(names[1], errors="replace") if len(names) > 2 else ""
        return partial(batch_of, default_index, _filter_path(query), _media_type(head.headers))

    return Codec(ProtocolName.ELASTICSEARCH, decoding.bytes_max, decoding.inflate, decode, _rejected, form=_media_type)


def _filter_path(query: str) -> str:
    """The parameter `filter_path`; empty if there is none."""
    if "filter_path" not in query:
        return ""
    try:
        return dict(parse_qsl(query, max_num_fields=QUERY_FIELDS_MAX)).get("filter_path", "")
    except ValueError:
        return ""


def _media_type(headers: Headers) -> str:
    """That of an answer: with the version of the API that the client asks for."""
    version = _asked_version(headers)
    return JSON if version is None else f"application/vnd.elasticsearch+json;compatible-with={version}"


def _asked_version(headers: Headers) -> str | None:
    for name in ("accept", "content-type"):
        match = _COMPATIBLE.search(headers.get(name) or "")
        if match is not None:
            return match[1]
    return None


def _rejected(head: RequestHead, error: SluiceError) -> Response:
    """The answer to a whole request. Everything that a client should repeat is a 429, as in an overload.

    Most clients repeat 429 with growing pauses, and 503 not at all or at once: it means a node that is gone.
    """
    plain = error_response(error)
    row = row_of(error)
    status = 429 if row.retryable else row.status
    if isinstance(error, OverloadedError):
        kind = "es_rejected_execution_exception"
    elif row.retryable:
        kind = "cluster_block_exception"
    elif status in (401, 403):
        kind = "security_exception"
    elif status == 413:
        kind = "content_too_long_exception"
    else:
        kind = "illegal_argument_exception"
    cause = {"type": kind, "reason": str(error)}
    body = _encode({"error": {"root_cause": [cause], **cause}, "status": status})
    return Response(status, body, _media_type(head.headers), {**plain.headers, **PRODUCT})


# --- What clients ask before they send ----------------------------------------------------------------------------


def version_response(head: RequestHead) -> Response | None:
    """The answer to `GET /` for shippers; None for browsers and others, which get the page."""
    headers = head.headers
    accepted = headers.get("accept") or ""
    agent = headers.get("user-agent") or ""
    is_shipper = _SHIPPERS.match(agent) is not None or "opensearch" in agent.lower()
    if "text/html" in accepted or not (
        is_shipper or JSON in accepted or "application/vnd.elasticsearch+json" in accepted
    ):
        return None
    if "opensearch" in agent.lower():
        version = {"distribution": "opensearch", "number": OPENSEARCH_VERSION}
    else:
        number = VERSIONS.get(_asked_version(headers) or "", VERSIONS["8"])
        version = {"number": number, "build_flavor": "default"}
    document = {
        "name": "sluice",
        "cluster_name": "sluice",
        "version": version,
        "tagline": "Sluice takes bulk requests as Elasticsearch does; it does not search",
    }
    return _fact(head, document)


def bulk_inquiries(health: Callable[[], Health]) -> list[Inquiry]:
    """The addresses that shippers ask. `health` returns the health of the whole system."""
    return [
        Inquiry("/_license", partial(_fact, document={"license": {"status": "active", "type": "oss"}})),
        Inquiry("/_cluster/health", lambda head: _fact(head, _cluster_health(health()))),
    ]


def _cluster_health(health: Health) -> dict[str, Any]:
    status = {Health.HEALTHY: "green", Health.DEGRADED: "yellow"}.get(health, "red")
    return {"cluster_name": "sluice", "status": status, "timed_out": False}


def _fact(head: RequestHead, document: dict[str, Any]) -> Response:
    return Response(200, _encode(document), _media_type(head.headers), {**PRODUCT, "cache-control": "no-store"})
