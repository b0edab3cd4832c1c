"""Rejects requests before they become objects, with complete responses that are made in advance.

While the bucket is empty or the event log does not respond, most requests are rejected, and so are those of an account
that offers far more than its share. So a rejection must be as cheap as possible. This module answers only the simplest
requests: their response depends on nothing but their head. All other requests, and every ambiguous request, take the
normal path and get the same response there. So do requests behind a trusted proxy while only their account has to wait:
to find the account, this module would have to read every head.

If writers need an API key (INGEST_KEYS), requests without a valid one are rejected here too. While a connection sends
valid keys, its heads are not read here: the normal path checks each key.

While many requests are rejected, the work for each is only what differs from the one before: a connection recognises a
head that it repeats, and a closed gate is looked at again after a millisecond.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from ingest import grammar
from ingest.account_counter import AccountCounter
from ingest.accounts import Client
from ingest.errors import KeyRefusedError, RateLimitedError, RequestError, row_of
from ingest.http import request_id
from ingest.http.cors import Cors
from ingest.http.known_head import BYTES_MAX, KnownHead, Span
from ingest.http.request_id import RequestIds
from ingest.http.response import head_of
from ingest.types import Codec, Gate, Head, Lifecycle, Response
from pipeline.errors import SluiceError
from pipeline.metrics import Count, IngestMetrics
from pipeline.names import LEVEL_HIGHEST, KeyRefusal, Level, LimitedBy

LINE_BYTES_MAX: Final = 64  # of the first line of a request that may be rejected early
RESPONSES_MADE: Final = 16  # each with its own Retry-After, so that clients rejected together do not return together
RESPONSES_SECONDS_MAX: Final = 0.1  # after which they are made again, since their content changes
ACCOUNTS_MAX: Final = 64  # whose responses are kept; accounts that are held back are few
# After a look at a closed gate, it counts as closed for so long, or shorter if the gate says so. If tokens come sooner
# than expected, they wait so long at most. A busy process rejects about 50 requests in this time.
CLOSED_SECONDS_MAX: Final = 0.001

# Fields that affect how a request is read or answered.
_FIELDS: Final = re.compile(
    rb"\n(host|content-length|content-type|x-request-id|connection|content-encoding|transfer-encoding|expect|upgrade|"
    rb"accept|priority|origin|forwarded|x-forwarded-for|x-api-key|authorization)"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
_LENGTH_FIELD: Final = "content-length"
_NOT_HERE: Final = frozenset({"transfer-encoding", "expect", "upgrade"})

# Whether a request has a level that may be rejected before the others. Cheaper than reading the head.
_HAS_PRIORITY: Final = re.compile(rb"\npriority:", re.IGNORECASE)

EncodedResponse = tuple[bytes, bytes]  # the start of a response, and what follows its request id


@dataclass(slots=True)
class _Responses:
    """The responses to rejected requests of one level, or of one account."""

    turns: Iterator[EncodedResponse]  # without end; empty until they are made
    encoded_at: float = 0.0  # monotonic
    encoded_for_seconds: float = 0.0  # seconds to wait
    closed_until: float = -math.inf  # monotonic; until then, requests get these without a look at the gate
    counters: Sequence[Count] = ()  # of such responses
    limited_by: LimitedBy | None = None  # None: the reason is not the rate, nor the limit of an account
    is_of_account: bool = False  # which its own limit holds back


NO_RESPONSES: Final = _Responses(iter(()))


class PlainRequest:
    """What requests of a connection have in common while their heads are alike."""

    __slots__ = ("fields", "form", "id_line", "level", "level_max", "match", "next_id_line", "rejection")

    def __init__(self, rejection: "EarlyRejection", head: KnownHead, form: str, cors: bytes, id_prefix: bytes) -> None:
        self.rejection = rejection
        self.match = head.match
        self.fields = head.fields
        self.form = form  # see Codec
        # The end of the head of a response, up to the client's id and up to the number of one that is made here.
        self.id_line = cors + b"x-request-id: "
        self.next_id_line = self.id_line + id_prefix
        self.level: Level | None = None  # of the last rejection
        self.level_max = LEVEL_HIGHEST


class EarlyRejection:
    """Rejects the requests to one target of one process. For the event loop only.

    `bytes_max` is the limit of a body that is discarded. `now` is the caller's monotonic clock.
    """

    def __init__(
        self,
        target: str,
        codec: Codec,
        *,
        gate: Gate,
        metrics: IngestMetrics,
        request_ids: RequestIds,
        bytes_max: int,
        cors: Cors | None = None,
    ) -> None:
        self._target = target
        self.begin = b"POST %b HTTP/1.1\r\n" % target.encode()  # the start of every request that may be rejected here
        self._head = re.compile(re.escape(self.begin) + grammar.FIELD_LINES)
        self._codec = codec
        self.bytes_max = bytes_max
        self._gate = gate
        self._metrics = metrics
        self._request_ids = request_ids
        self._cors = cors
        self._by_level: dict[tuple[Level, str], _Responses] = {}
        self._by_account: dict[tuple[str, str], _Responses] = {}
        self._by_key: dict[tuple[KeyRefusal, str], _Responses] = {}

    def may_reject(self, data: bytes, client: Client) -> bool:
        """Whether the request at the start of `data` may have to be rejected. Takes less time than reading its head."""
        gate = self._gate
        tally = client.recent if client.has_keys else client.tally
        if tally is None and client.has_keys:
            return True
        seconds = gate.seconds_closed()
        if seconds > 0 or self._held(tally, seconds) is not None:
            return True
        if gate.admits_all_levels:
            return False
        is_highest = client.level_max is LEVEL_HIGHEST
        return not is_highest or _HAS_PRIORITY.search(data, 0, grammar.HEAD_BYTES_MAX) is not None

    def read(self, data: bytes) -> PlainRequest | None:
        """The request at the start of `data`; None if it is not simple."""
        match = self._head.match(data)
        if match is None or match.end() > grammar.HEAD_BYTES_MAX:
            return None
        fields: dict[str, str] = {}
        at: dict[str, Span] = {}
        for found in _FIELDS.finditer(data, match.start(1) - 1, match.end(1)):
            name, value = found[1].decode("ascii").lower(), found[2].rstrip(b" \t")
            if name in fields or name in _NOT_HERE or not value.isascii():
                return None
            fields[name] = value.decode("ascii")
            at[name] = found.start(2), found.start(2) + len(value)
        length = grammar.length_of(fields.get(_LENGTH_FIELD, ""))
        if length is None or not grammar.is_host(fields.get("host", " ")):
            return None
        if fields.get("connection", "keep-alive").lower() != "keep-alive":
            return None
        try:
            self._codec.decode(Head(fields, self._target))
            if "content-encoding" in fields:
                self._codec.inflate(fields)
        except RequestError:
            return None
        has_id = request_id.is_valid(fields.get(request_id.HEADER, "").encode())
        id_at = at[request_id.HEADER] if has_id else None
        head = KnownHead(data[: match.end()], fields, at[_LENGTH_FIELD], id_at)
        cors = b"" if self._cors is None else self._cors.lines(fields.get("origin"))
        return PlainRequest(self, head, self._codec.form(fields), cors, self._request_ids.prefix)

    def responses_to(
        self, request: PlainRequest, client: Client, responses: _Responses, now: float
    ) -> _Responses | None:
        """The responses to such requests; None if they are not to be rejected. `responses` are the last ones.

        Counts one request, apart from its response.
        """
        tally = client.tally
        if client.has_keys:
            fields = request.fields
            try:
                tally = client.tally_of_key(fields.get("x-api-key"), fields.get("authorization"), self._codec.name)
            except KeyRefusedError as refusal:
                return self._to_key(refusal, request)
            if client.level_max is not request.level_max:
                responses = NO_RESPONSES
        is_held = tally is not None and tally.hold is not None
        if now >= responses.closed_until or is_held is not responses.is_of_account:
            decided = self._decide(request, client, tally, now)
            if decided is None:
                return None
            responses = decided
        self._gate.note_rejected(request.level)
        if responses.limited_by is not None:
            if tally is None:
                tally = client.tally_of(request.fields.get(client.field, ""))
            tally.refuse_unread(responses.limited_by)
        return responses

    def _decide(
        self, request: PlainRequest, client: Client, tally: AccountCounter | None, now: float
    ) -> _Responses | None:
        """The responses to such requests, made again if the present ones do not fit; None if the gate admits them.

        `tally` is that of their account; None if each may have another.
        """
        gate = self._gate
        level_max = request.level_max = client.level_max
        level = request.level = gate.level_of(request.fields.get("priority"), level_max)
        level_needed = level_max if level is None else level
        seconds = gate.seconds_closed(level_needed)
        held = self._held(tally, seconds)
        if held is None:
            responses = self._to_level(level_needed, request.form)
        else:
            seconds, responses = gate.seconds_closed_for(held), self._to_account(held.account, request.form)
        if seconds <= 0:
            return None
        made_for = responses.encoded_for_seconds
        is_fit = seconds <= made_for and math.isinf(seconds) == math.isinf(made_for)
        if not is_fit or now - responses.encoded_at > RESPONSES_SECONDS_MAX:
            refusal = gate.refusal(level_needed, held)
            if refusal is None:
                return None
            made = self._make(refusal, request)
            responses.turns = _in_turn(made)
            responses.encoded_at, responses.encoded_for_seconds = now, seconds
            responses.counters = self._metrics.refused(self._codec.name, row_of(refusal).code, made[0].status)
            responses.limited_by = refusal.limited_by if isinstance(refusal, RateLimitedError) else None
        responses.closed_until = now + min(seconds, CLOSED_SECONDS_MAX)
        return responses

    def _held(self, tally: AccountCounter | None, seconds: float) -> AccountCounter | None:
        """The tally of an account that its own limit holds back; None if it does not, or nobody is admitted."""
        if tally is None or tally.hold is None or math.isinf(seconds) or self._gate.seconds_closed_for(tally) <= 0:
            return None
        return tally

    def _to_key(self, refusal: KeyRefusedError, request: PlainRequest) -> _Responses:
        """The responses to requests that are refused for their API key. They depend on reason and form."""
        found = self._by_key.get((refusal.reason, request.form))
        if found is None:
            if len(self._by_key) >= ACCOUNTS_MAX:
                self._by_key.clear()
            row, made = row_of(refusal), self._make(refusal, request)
            found = self._by_key[refusal.reason, request.form] = _Responses(_in_turn(made))
            status, metrics, name = made[0].status, self._metrics, self._codec.name
            answered = metrics.answered(name, row.code, status)
            found.counters = [
                metrics.key_refusals.labels(refusal.reason.value),
                *(metrics.refused(name, row.code, status) if row.retryable else [answered]),
            ]
        return found

    def _make(self, refusal: SluiceError, request: PlainRequest) -> list[Response]:
        head = Head(request.fields, self._target)
        return [self._codec.rejected(head, refusal) for _ in range(RESPONSES_MADE)]

    def _to_level(self, level: Level, form: str) -> _Responses:
        found = self._by_level.get((level, form))
        if found is None:
            found = self._by_level[level, form] = _Responses(iter(()))
        return found

    def _to_account(self, account: str, form: str) -> _Responses:
        found = self._by_account.get((account, form))
        if found is None:
            if len(self._by_account) >= ACCOUNTS_MAX:
                self._by_account.clear()
            found = self._by_account[account, form] = _Responses(iter(()), is_of_account=True)
        return found


class EarlyRejections:
    """The early rejections of all targets of one process."""

    def __init__(
        self, gate: Gate, rejections: Iterable[EarlyRejection], request_ids: RequestIds, lifecycle: Lifecycle
    ) -> None:
        self.gate = gate
        self.by_line = {one.begin: one for one in rejections}
        self.numbers = request_ids.numbers
        self.lifecycle = lifecycle


class ConnectionRejections:
    """The early rejections of one connection. It keeps the head of the last one."""

    __slots__ = ("_by_line", "_client", "_gate", "_is_plain", "_last", "_lifecycle", "_numbers", "_tally", "responses")

    def __init__(self, rejections: EarlyRejections, client: Client) -> None:
        self._by_line = rejections.by_line
        self._gate = rejections.gate
        self._lifecycle = rejections.lifecycle
        self._numbers = rejections.numbers
        self._client = client
        # The account of all its requests, if nothing but the bucket and this account's limit decides about them.
        self._tally = None if client.has_keys or rejections.gate.has_levels else client.tally
        self._last: PlainRequest | None = None
        self.responses = NO_RESPONSES  # to the last request that was rejected

    def may_reject(self) -> bool:
        """Whether a request may be rejected; False if it is known without reading it that it is not.

        Not needed until `responses.closed_until`.
        """
        client = self._client
        tally = client.tally or client.recent
        return tally is None or tally.hold is not None or not self._gate.is_open()

    def reject(self, data: bytes, now: float) -> tuple[bytes, int] | None:
        """The response to the request at the start of `data`, and the length of that request, including its body.

        None if it is not to be rejected, or not here. The body may not have arrived yet; its size is within the limits.
        """
        if self._lifecycle.is_stopping:
            return None
        request, responses, tally = self._last, self.responses, self._tally
        found = None if request is None else request.match(data)
        is_closed = found is not None and now < responses.closed_until
        if not is_closed:
            if found is None:
                request, responses = self._read(data), NO_RESPONSES
                found = None if request is None else request.match(data)
            elif request is not None and not request.rejection.may_reject(data, self._client):
                return None
        if request is None or found is None or found[1] > request.rejection.bytes_max:
            return None
        end, length, given_id = found
        if is_closed and tally is not None and (tally.hold is not None) is responses.is_of_account:
            if responses.limited_by is not None:
                tally.refuse_unread(responses.limited_by)
        else:
            decided = request.rejection.responses_to(request, self._client, responses, now)
            if decided is None:
                return None
            self._last, self.responses = request if end <= BYTES_MAX else None, decided
            responses = decided
        for counter in responses.counters:
            counter.value += 1
        start, rest = next(responses.turns)
        if given_id:
            return b"%b%b%b%b" % (start, request.id_line, given_id, rest), end + length
        return b"%b%b%d%b" % (start, request.next_id_line, next(self._numbers), rest), end + length

    def _read(self, data: bytes) -> PlainRequest | None:
        """The request at the start of `data`; None if it is certainly not rejected, or not here."""
        rejection = self._by_line.get(data[: data.find(b"\n", 0, LINE_BYTES_MAX) + 1])
        if rejection is None or not rejection.may_reject(data, self._client):
            return None
        return rejection.read(data)


def _in_turn(responses: Iterable[Response]) -> Iterator[EncodedResponse]:
    return cycle([_encoded(one) for one in responses])


def _encoded(response: Response) -> EncodedResponse:
    """A response on a connection that stays open."""
    body = response.body
    head = head_of(response.status, response.media_type, len(body), response.headers.items(), keep_alive=True)
    return head, b"\r\n\r\n" + body
