"""HTTP/1.1 for ingest: subclasses that fix errors of Sanic's protocol.

The behaviour of Sanic 25.12, and the behaviour here:

- Sanic's time-outs restart with every byte. Here headers and body have one total time.
- Sanic treats `Content-Length : 5` as an unknown header. It accepts control characters, a bare CR or LF, and signs,
  blanks or non-ASCII digits within numbers. It does not check the end of a chunk. Here the grammar of RFC 9112 applies,
  and anything else is a 400: requests are smuggled if two servers read one request differently. Bytes that can't become
  a head (TLS, a bare LF) are rejected at once, not when their time is up.
- Sanic asks a client that expects `100 Continue` for a body that it has already rejected. It closes a connection with
  unread data, so the response may be lost. Here an unwanted body is discarded within a limit, or the connection is
  closed in two steps.
- In Sanic, a client that sends requests but reads no responses holds its task forever. Here writing has a limit too.
- Sanic answers all requests that have arrived on a connection before any other connection gets a turn. A read may have
  ten thousand of them, which took a second, or as many chunks of a body. Here each request, and some chunks at once,
  wait for a turn.
- Sanic accepts any number of connections. Here they are bounded.
- Sanic makes a request object of everything. Here early rejections come first (`ingest.http.early_rejection`), and a
  request with events has no such object: its fields are in a dict, since only a few of them are read.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from sanic import Request
from sanic.compat import Header
from sanic.exceptions import BadRequest, ExpectationFailed, RequestTimeout
from sanic.http import Http, Stage

from ingest import grammar
from ingest.account_counter import AccountCounter
from ingest.accounts import Client
from ingest.errors import BodyTooLargeError, HeadTooLargeError
from ingest.grammar import HEAD_BYTES_MAX, ascii_lower
from ingest.held_bodies import HeldBytes
from ingest.http import request_id
from ingest.http.cors import Cors
from ingest.http.request_id import RequestIds
from ingest.http.response import head_of, to_sanic, whole
from ingest.types import Codec, Lifecycle, Response
from pipeline.names import Level, ProtocolName

if TYPE_CHECKING:
    from sanic.models.protocol_types import TransportProtocol

LINGER_SECONDS: Final = 1.0  # for a client to stop sending an unwanted body
LINGER_BYTES_MAX: Final = 8 << 20  # discarded during that time
CHUNK_LINE_BYTES_MAX: Final = 256  # a chunk's size with its extensions
CHUNKS_AT_ONCE: Final = 64  # of a body, before other connections get a turn: half a millisecond
EMPTY_LINES_MAX: Final = 2  # before a request line (RFC 9112, 2.2)

_HEAD: Final = re.compile(
    rb"(" + grammar.TOKEN + rb") ([^\x00-\x20\x7f-\xff]++) HTTP/(1\.[01])\r\n" + grammar.FIELD_LINES
)
_HEADER: Final = re.compile(r"([^:]+):([^\r]*)\r\n")
_LENGTH_FIELD: Final = "content-length"
_CODING_FIELD: Final = "transfer-encoding"
# A server in front may use the other one of two.
_NOT_REPEATED: Final = frozenset({_LENGTH_FIELD, _CODING_FIELD, "host", "content-type", "content-encoding"})
# White space before a chunk's extension only (RFC 9112, 7.1.1).
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TLS_HANDSHAKE: Final = b"\x16\x03"
# Bytes that no head has: a line feed alone, and control characters.
_NO_HEAD: Final = re.compile(rb"(?<!\r)\n|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_COMING: Final = b"coming"  # of a body: Sanic only checks whether bytes are left
_NOTHING: Final[tuple[bytes, ...]] = ()
_NO_HEADERS: Final[Mapping[str, str]] = {}
_BYTES: Final = "application/octet-stream"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of every connection of a process."""

    lifecycle: Lifecycle
    request_ids: RequestIds
    request_seconds_max: float  # for the head and the body of a request together
    discard_bytes_max: int  # of an unwanted body, before its connection is closed


class LimitedConnection(Protocol):
    """A connection with its process' limits."""

    codecs: Mapping[str, Codec]
    cors: Cors | None
    limits: ConnectionLimits
    client: Client
    has_waited: bool  # for bytes, since this was last set to False: so others had a turn
    is_ending: bool  # its current request is the last one


class EventsRequest:
    """A request that a codec answers, in the place of Sanic's request object: it has what Sanic's loop uses of one."""

    __slots__ = ("codec", "conn_info", "head", "method", "stream", "url")

    def __init__(self, codec: Codec, url: str, head: bytes) -> None:
        self.codec = codec
        self.method = "POST"
        self.url = url
        self.head = head


class IngestHttp(Http):
    """The requests and responses of one connection."""

    __slots__ = (
        "_body_left", "_chunks", "_client", "_connection", "_cors", "_deadline", "_fields", "_identified_for",
        "_is_chunked", "_limits", "_lingers", "headers", "is_for_events", "request_id",
    )  # fmt: skip

    def __init__(self, protocol: LimitedConnection) -> None:
        super().__init__(protocol)  # type: ignore[no-untyped-call]
        self._connection = protocol
        self._client = protocol.client
        self._cors = protocol.cors
        self._limits = protocol.limits
        self._deadline: asyncio.TimerHandle | None = None
        self._body_left = 0  # bytes of the body, or of its chunk, still to come
        self._is_chunked = False
        self._chunks = 0  # of the body, whose first line was read
        self._lingers = False
        self._identified_for: ProtocolName | None = None  # the protocol of the current request, if it needs a key
        self._fields: Sequence[tuple[str, str]] = ()  # all header fields of the current request, as they were sent
        self.headers: Mapping[str, str] = _NO_HEADERS  # the first field of each name, in lower case
        self.is_for_events = False  # the current request is for one of the addresses for events
        self.request_id = ""  # of the current request; empty until it has one

    @property
    def target(self) -> str:
        """The target of the current request, as it was sent."""
        return self.url or ""

    def identify(self, protocol: ProtocolName | None) -> AccountCounter:
        """The tally of the account of the current request; see Request."""
        client = self._client
        if client.tally is not None:
            return client.tally
        if client.has_keys:
            headers, self._identified_for = self.headers, protocol
            return client.tally_of_key(headers.get("x-api-key"), headers.get("authorization"), protocol)
        # A proxy may add a line of its own below those of its client.
        return client.tally_of(self._all_lines(client.field))

    @property
    def level_max(self) -> Level:
        """The highest level that the current request may have; see Request."""
        return self._client.level_max

    async def http1(self) -> None:
        """Handle requests until the connection ends."""
        await super().http1()  # type: ignore[no-untyped-call]
        if self._lingers:
            await self._linger()

    # --- Head -------------------------------------------------------------------------------------------------------

    def init_for_request(self) -> None:
        """Start a request."""
        self.disarm()
        self._fields, self.headers = (), _NO_HEADERS
        self.is_for_events = False
        self.request_id = ""
        super().init_for_request()  # type: ignore[no-untyped-call]

    async def http1_request_header(self) -> None:
        """Receive the head and make a request of it. Raises BadRequest, HeadTooLargeError."""
        connection = self._connection
        if not connection.has_waited:  # the request came with the one before: other connections come first
            await asyncio.sleep(0)
        connection.has_waited = False
        buffer = self.recv_buffer
        if buffer.startswith(b"\r\n"):
            _remove_empty_lines(buffer)
        end = buffer.find(b"\r\n\r\n")
        seen = 0
        while end < 0:
            _refuse_what_is_no_head(buffer, max(0, seen - 1))
            seen = len(buffer)
            if seen >= HEAD_BYTES_MAX:
                raise HeadTooLargeError(f"the headers are larger than {HEAD_BYTES_MAX} bytes")
            await self._receive_in_time()
            end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
        if end + 4 > HEAD_BYTES_MAX:
            raise HeadTooLargeError(f"the headers are larger than {HEAD_BYTES_MAX} bytes")
        head = bytes(buffer[: end + 4])
        match = _HEAD.fullmatch(head)
        if match is None:
            raise BadRequest("the request line or a header is not HTTP/1.1")
        del buffer[: end + 4]
        self._make_request(head, *match.groups())

    def _make_request(self, head: bytes, method: bytes, target: bytes, version: bytes, lines: bytes) -> None:
        """Make the request of a head whose grammar is correct, and determine the form of its body."""
        connection = self._connection
        url = self.url = target.decode("ascii")
        fields = self._fields = _HEADER.findall(lines.decode("utf-8", "surrogateescape"))
        headers = self.headers = {name.lower(): value.strip(" \t") for name, value in reversed(fields)}
        self.request_id = self._limits.request_ids.of(headers.get(request_id.HEADER))
        self.head_only = method == b"HEAD"
        is_new = version == b"1.1"
        self.keep_alive = is_new if "connection" not in headers else self._stays_open(is_new=is_new)
        if connection.is_ending:  # since before this head was complete
            self.keep_alive = False
        codec = connection.codecs.get(url) if method == b"POST" else None
        request: Any = (
            self._framework_request(head, method, target, version) if codec is None else EventsRequest(codec, url, head)
        )
        self._expect_body(fields, headers, is_new=is_new)
        self.request, request.stream = request, self
        self.protocol.state["requests_count"] += 1

    def _framework_request(self, head: bytes, method: bytes, target: bytes, version: bytes) -> Request[Any, Any]:
        """Sanic's object for the current request, for Sanic's handlers."""
        protocol = self.protocol
        request = protocol.request_class(
            url_bytes=target,
            headers=Header([(name.lower(), value.strip(" \t")) for name, value in self._fields]),
            version=version.decode(),
            method=method.decode(),
            transport=cast("TransportProtocol", protocol.transport),
            app=protocol.app,
            head=head,
        )
        protocol.request_class._current.set(request)
        return request

    def _all_lines(self, name: str) -> str:
        """The values of all header fields with a name (lower case), with commas between: as one field."""
        return ",".join([value.strip(" \t") for sent, value in self._fields if sent.lower() == name])

    def _stays_open(self, *, is_new: bool) -> bool:
        """Whether the header Connection leaves the connection open; `is_new`: HTTP/1.1."""
        options = {option.strip() for option in ascii_lower(self._all_lines("connection")).split(",")}
        return "close" not in options and (is_new or "keep-alive" in options)

    def _expect_body(self, fields: Sequence[tuple[str, str]], headers: Mapping[str, str], *, is_new: bool) -> None:
        """Determine the form of the body: a number of bytes, or chunks. Raises BadRequest if the head is ambiguous.

        `headers` has the first of the `fields` of each name.
        """
        self._body_left = 0
        self._is_chunked = False
        if len(headers) < len(fields):
            _refuse_repeated(name.lower() for name, _ in fields)
        _check_host(headers.get("host"), is_new=is_new)
        length, coding, expect = headers.get(_LENGTH_FIELD), headers.get(_CODING_FIELD), headers.get("expect")
        if length is not None and coding is not None:
            raise BadRequest("Content-Length and Transfer-Encoding: only one of them")
        if length is not None:
            size = grammar.length_of(length)
            if size is None:
                raise BadRequest("Content-Length is not a number")
            self._body_left = size
            self.request_body = _COMING if self._body_left else None
        elif coding is not None:
            if ascii_lower(coding) != "chunked" or not is_new:
                raise BadRequest("the Transfer-Encoding is not supported: only chunked is")
            self._is_chunked, self._chunks = True, 0
            self.request_body = _COMING
        if expect is not None and is_new and self.request_body:
            if ascii_lower(expect) != "100-continue":
                raise ExpectationFailed("only 100-continue can be expected")
            self.expecting_continue = True
        if not self.request_body:
            self.disarm()  # the whole request has arrived; its handler has no time limit here

    # --- Body -------------------------------------------------------------------------------------------------------

    async def receive_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        """The whole body as it was sent; `held` counts its bytes while they arrive.

        Raises BodyTooLargeError, BadRequest, OverloadedError, and the errors of `identify`: a body may take until after
        the end of its key. Is cancelled when time is up.
        """
        if not self.request_body:
            return b""
        if self._body_left > bytes_max:
            raise BodyTooLargeError(bytes_max, "bytes")
        buffer = self.recv_buffer
        size = self._body_left
        if not self._is_chunked and len(buffer) >= size:
            body = bytes(buffer[:size])
            self._end_body(size)
            held.note(size)
            return body
        parts: list[bytes] = []
        left = bytes_max
        while (part := await self.read()) is not None:
            left -= len(part)
            if left < 0:
                raise BodyTooLargeError(bytes_max, "bytes")
            held.take(len(part))
            parts.append(part)
        if self._client.has_keys:  # its key may have been revoked while the body arrived
            self.identify(self._identified_for)
        return b"".join(parts)

    async def read(self) -> bytes | None:
        """Some bytes of the body; None at its end. Raises BadRequest."""
        if not self.request_body:
            return None
        if self.expecting_continue:
            self.expecting_continue = False
            await self._send(_CONTINUE)
        if self._is_chunked and self._body_left == 0 and not await self._next_chunk():
            return None
        buffer = self.recv_buffer
        while not buffer:
            await self._receive_in_time()
        size = min(len(buffer), self._body_left)
        part = bytes(buffer[:size])
        if size == self._body_left and not self._is_chunked:
            self._end_body(size)
        else:
            del buffer[:size]
            self._body_left -= size
        return part

    async def _next_chunk(self) -> bool:
        """Read a chunk's first line; False at the last chunk, whose end it reads too. Raises BadRequest."""
        buffer = self.recv_buffer
        if self._chunks:
            await self._receive_at_least(2)
            if buffer[:2] != b"\r\n":
                raise self._bad_chunk("a chunk is longer than it says")
            del buffer[:2]
        self._chunks += 1
        if self._chunks % CHUNKS_AT_ONCE == 0:
            await asyncio.sleep(0)
        while (end := buffer.find(b"\n", 0, CHUNK_LINE_BYTES_MAX)) < 0:
            if len(buffer) >= CHUNK_LINE_BYTES_MAX:
                raise self._bad_chunk("the line of a chunk's size is too long")
            await self._receive_in_time()
        match = _CHUNK_LINE.fullmatch(buffer[: end + 1])
        if match is None:
            raise self._bad_chunk("a chunk's size is not a number")
        del buffer[: end + 1]
        self._body_left = int(match[1], 16)
        if self._body_left:
            return True
        await self._receive_at_least(2)
        if buffer[:2] != b"\r\n":
            raise self._bad_chunk("trailers are not supported")
        self._end_body(2)
        return False

    def _bad_chunk(self, message: str) -> BadRequest:
        # The start of the next request is unknown now.
        self.keep_alive = False
        self.request_body = None
        return BadRequest(message)

    def _end_body(self, size: int) -> None:
        """Remove the last `size` bytes of a body from the buffer."""
        del self.recv_buffer[:size]
        self._body_left = 0
        self.request_body = None
        self.disarm()

    async def discard_body(self) -> None:
        """Discard the body of a request that was answered without it, as far as the limits allow.

        It is no error, but Sanic logs one if it has to do this after a successful response.
        """
        try:
            async for _ in self:
                pass
        except BadRequest:
            self._lingers = True
        finally:
            self.request_body = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Sanic calls this to discard the rest of a body that a handler did not read. Yields nothing."""
        if self.keep_alive:
            left = self._limits.discard_bytes_max
            while self.request_body:
                left -= len(await self.read() or b"")
                if left < 0:
                    self.keep_alive = False
                    break
        if self.request_body:
            self._lingers = True
            self.request_body = None
        for nothing in _NOTHING:
            yield nothing

    async def _linger(self) -> None:
        """Give the client time to read its response before the connection is closed with unread data."""
        transport = self.protocol.transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        left = LINGER_BYTES_MAX
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0:
                    left -= len(self.recv_buffer)
                    self.recv_buffer.clear()
                    await self._receive_more()
        except TimeoutError:
            pass

    # --- Response ---------------------------------------------------------------------------------------------------

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Send a response. It states whether the connection stays open with the rest of the body."""
        if self.request_body:
            if self.expecting_continue:
                # The client expects `100 Continue` before sending; this response replaces it.
                self.expecting_continue = False
                self.keep_alive = False
                self.request_body = None
            elif self._body_left > self._limits.discard_bytes_max:
                self.keep_alive = False
        if self._limits.lifecycle.is_stopping:
            self.keep_alive = False
        response = self.response
        if not self.request_id:
            self.request_id = self._limits.request_ids.of()  # the request could not be read
        response.headers[request_id.HEADER] = self.request_id
        if self._cors is not None and self.is_for_events:
            response.headers.update(self._cors.fields(self.headers.get("origin")))
        body = data or response.body
        if not end_stream or not body or response.status < 200 or "content-length" in response.headers:
            await super().http1_response_header(data, end_stream)
            return
        # The response is complete, as nearly always: one write, without Sanic's handling of the other cases.
        media_type = response.content_type or _BYTES
        head = head_of(response.status, media_type, len(body), response.headers.items(), keep_alive=self.keep_alive)
        await self._end_response(head + b"\r\n" + (b"" if self.head_only else body))

    async def answer(self, response: Response) -> None:
        """Send a complete response to a request for events."""
        if self.request_body:  # the body was not read completely: the rest must be handled
            rest = to_sanic(response)
            self.respond(rest)
            await rest.send(end_stream=True)
            return
        if self._limits.lifecycle.is_stopping:
            self.keep_alive = False
        body = response.body
        head = head_of(
            response.status, response.media_type, len(body), response.headers.items(), keep_alive=self.keep_alive
        )
        cors = b"" if self._cors is None else self._cors.lines(self.headers.get("origin"))
        await self._end_response(whole(head, self.request_id.encode(), body, cors))

    async def _end_response(self, data: bytes) -> None:
        """Write a complete response, and set the state that Sanic expects."""
        self.expecting_continue = False
        self.response_func = None  # type: ignore[assignment]
        await self._send(data)
        self.stage = Stage.IDLE

    async def error_response(self, exception: Exception) -> None:
        """Answer a request that could not be read, or whose handler failed."""
        # After an error in the head, or a time-out, more bytes may be on their way.
        self._lingers = self.stage is Stage.REQUEST or bool(self.request_body)
        request: object = self.request
        if isinstance(request, EventsRequest):  # Sanic's handler of errors needs Sanic's object
            method, target, version, _ = cast("re.Match[bytes]", _HEAD.fullmatch(request.head)).groups()
            self.request = self._framework_request(request.head, method, target, version)
            self.request.stream = self
        await super().error_response(exception)

    def create_empty_request(self) -> None:
        """Create a substitute for a request that could not be made. Sanic's fails again if the address was invalid."""
        self.url = None
        super().create_empty_request()

    # --- Time -------------------------------------------------------------------------------------------------------

    async def _receive_in_time(self) -> None:
        """Wait for more bytes, within the total time of this request."""
        if self._deadline is None:
            self._deadline = self.protocol.loop.call_later(self._limits.request_seconds_max, self._time_is_up)
        await self._receive_more()

    async def _receive_at_least(self, size: int) -> None:
        while len(self.recv_buffer) < size:
            await self._receive_in_time()

    def disarm(self) -> None:
        """Stop the timer: the request has arrived."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_is_up(self) -> None:
        self._deadline = None
        task = self.protocol._task
        if task is not None and self.stage in (Stage.REQUEST, Stage.HANDLER):
            self.exception = RequestTimeout("headers and body did not arrive in time")
            task.cancel()
        elif task is not None:
            task.cancel()  # the rest of a body that was already answered


def _remove_empty_lines(buffer: bytearray) -> None:
    for _ in range(EMPTY_LINES_MAX):
        if buffer.startswith(b"\r\n"):
            del buffer[:2]


def _refuse_what_is_no_head(buffer: bytearray, start: int) -> None:
    """Raise BadRequest if the received bytes can't become a head, whatever follows; checks from `start` on."""
    if start == 0 and buffer.startswith(_TLS_HANDSHAKE):
        raise BadRequest("the client sent TLS to a port for plain HTTP: use http://, or a proxy that terminates TLS")
    if (match := _NO_HEAD.search(buffer, start)) is not None:
        is_line_feed = match[0] == b"\n"
        raise BadRequest(
            "a line of the head ends with LF alone: HTTP/1.1 ends lines with CR LF"
            if is_line_feed
            else "the head contains a control character"
        )


def _check_host(host: str | None, *, is_new: bool) -> None:
    """Raise BadRequest if a Host is missing in HTTP/1.1, or is invalid."""
    if host is None:
        if is_new:
            raise BadRequest("there is no Host")
    elif not grammar.is_host(host):
        raise BadRequest("the Host is not a name or an address with a port")


def _refuse_repeated(names: Iterable[str]) -> None:
    """Raise BadRequest if a field that decides how a request is read is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in _NOT_REPEATED:
            if name in seen:
                raise BadRequest(f"there is more than one {name}")
            seen.add(name)
