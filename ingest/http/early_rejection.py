"""Rejects requests before they become objects, with complete responses that are made in advance.

While the bucket is empty or the event log does not respond, most requests are rejected, and so are those of an account
that offers far more than its share. So a rejection must be as cheap as possible. This module answers only the simplest
requests: their response depends on nothing but their head. All other requests, and every ambiguous request, take the
normal path and get the same response there. So do requests behind a trusted proxy while only their account has to wait:
to find the account, this module would have to read every head.

If writers need an API key (INGEST_KEYS), requests without a valid one are rejected here too. While a connection sends
valid keys, its heads are not read here: the normal path checks each key.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from prometheus_client import Counter

from ingest import grammar
from ingest.account_counter import AccountCounter
from ingest.accounts import Client
from ingest.errors import KeyRefusedError, RateLimitedError, RequestError, row_of
from ingest.http import request_id
from ingest.http.cors import Cors
from ingest.http.request_id import RequestIds
from ingest.http.response import head_of, whole
from ingest.types import Codec, Gate, Head, Lifecycle, Response
from pipeline.clock import Clock
from pipeline.errors import SluiceError
from pipeline.metrics import IngestMetrics
from pipeline.names import LEVEL_HIGHEST, KeyRefusal, Level, LimitedBy

LINE_BYTES_MAX: Final = 64  # of the first line of a request that may be rejected early
RESPONSES_MADE: Final = 16  # each with its own Retry-After, so that clients rejected together do not return together
RESPONSES_SECONDS_MAX: Final = 0.1  # after which they are made again, since their content changes
ACCOUNTS_MAX: Final = 64  # whose responses are kept; accounts that are held back are few

# Fields that affect how a request is read or answered.
_FIELDS: Final = re.compile(
    rb"(?:^|\n)(host|content-length|content-type|x-request-id|connection|content-encoding|transfer-encoding|expect|upgrade|"
    rb"accept|priority|origin|forwarded|x-forwarded-for|x-api-key|authorization)"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
_NOT_HERE: Final = frozenset({"transfer-encoding", "expect", "upgrade"})

# Whether a request has a level that may be rejected before the others. Cheaper than reading the head.
_HAS_PRIORITY: Final = re.compile(rb"\npriority:", re.IGNORECASE)

EncodedResponse = tuple[bytes, bytes]  # the head of a response without its request id, and its body


@dataclass(slots=True)
class _Responses:
    """The responses to rejected requests of one level, or of one account."""

    encoded: Sequence[EncodedResponse] = ()
    encoded_at: float = 0.0  # monotonic
    encoded_for_seconds: float = 0.0  # seconds to wait
    counters: Sequence[Counter] = ()  # of such responses
    limited_by: LimitedBy | None = None  # None: the reason is not the rate, nor the limit of an account


class EarlyRejection:
    """Rejects the requests to one target of one process. For the event loop only.

    `bytes_max` is the limit of a body that is discarded.
    """

    def __init__(
        self,
        target: str,
        codec: Codec,
        *,
        gate: Gate,
        metrics: IngestMetrics,
        clock: Clock,
        request_ids: RequestIds,
        lifecycle: Lifecycle,
        bytes_max: int,
        cors: Cors | None = None,
    ) -> None:
        self._target = target
        self.begin = b"POST %b HTTP/1.1\r\n" % target.encode()  # the start of every request that may be rejected here
        self._head = re.compile(re.escape(self.begin) + grammar.FIELD_LINES)
        self._codec = codec
        self._bytes_max = bytes_max
        self._gate = gate
        self._metrics = metrics
        self._clock = clock
        self._request_ids = request_ids
        self._lifecycle = lifecycle
        self._cors = cors
        self._turn = count()
        self._by_level: dict[tuple[Level, str], _Responses] = {}
        self._by_account: dict[tuple[str, str], _Responses] = {}
        self._by_key: dict[tuple[KeyRefusal, str], _Responses] = {}

    def reject(self, data: bytes, client: Client) -> tuple[bytes, int] | None:
        """The response to the request at the start of `data`, and the length of that request, including its body.

        None if it is not to be rejected, or not here. The body may not have arrived yet; its size is within the limits.
        """
        if self._lifecycle.is_stopping:
            return None
        gate, has_keys = self._gate, client.has_keys
        expected = client.recent if has_keys else client.tally
        is_unknown = has_keys and expected is None
        seconds = gate.seconds_closed()
        held = self._held(expected, seconds)
        if (
            held is None
            and seconds <= 0
            and not is_unknown
            and (
                gate.admits_all_levels
                or (client.level_max is LEVEL_HIGHEST and _HAS_PRIORITY.search(data, 0, grammar.HEAD_BYTES_MAX) is None)
            )
        ):
            return None
        read = self._read(data)
        if read is None:
            return None
        name, length, fields = read
        tally = expected
        if has_keys:
            try:
                tally = client.tally_of_key(fields.get("x-api-key"), fields.get("authorization"), self._codec.name)
            except KeyRefusedError as refusal:
                return self._respond(self._to_key(refusal, fields), name, fields), length
            held = self._held(tally, seconds)
        level_max = client.level_max
        level = gate.level_of(fields.get("priority"), level_max)
        level_needed = level_max if level is None else level
        if level_needed is not LEVEL_HIGHEST:
            seconds = gate.seconds_closed(level_needed)
        responses = self._responses_to(level_needed, seconds, held, fields)
        if responses is None:
            return None
        gate.note_rejected(level)
        if responses.limited_by is not None:
            if tally is None:
                tally = client.tally_of(fields.get(client.field, ""))
            tally.refuse_unread(responses.limited_by)
        return self._respond(responses, name, fields), length

    def _held(self, tally: AccountCounter | None, seconds: float) -> AccountCounter | None:
        """The tally of an account that its own limit holds back; None if it does not, or nobody is admitted."""
        if tally is None or tally.hold is None or math.isinf(seconds) or self._gate.seconds_closed_for(tally) <= 0:
            return None
        return tally

    def _respond(self, responses: _Responses, name: bytes, fields: Mapping[str, str]) -> bytes:
        """One of the responses, with the id of the request, and what a browser needs to show it to the page."""
        head, body = responses.encoded[next(self._turn) % len(responses.encoded)]
        for counter in responses.counters:
            counter.inc()
        cors = b"" if self._cors is None else self._cors.lines(fields.get("origin"))
        return whole(head, name, body, cors)

    def _to_key(self, refusal: KeyRefusedError, fields: Mapping[str, str]) -> _Responses:
        """The responses to requests that are refused for their API key. They depend on reason and form."""
        form = self._codec.form(fields)
        found = self._by_key.get((refusal.reason, form))
        if found is None:
            if len(self._by_key) >= ACCOUNTS_MAX:
                self._by_key.clear()
            row, made = row_of(refusal), self._make(refusal, fields)
            found = self._by_key[refusal.reason, form] = _Responses([_encoded(one) for one in made])
            status, metrics, name = made[0].status, self._metrics, self._codec.name
            answered = metrics.answered(name, row.code, status)
            found.counters = [
                metrics.key_refusals.labels(refusal.reason.value),
                *(metrics.refused(name, row.code, status) if row.retryable else [answered]),
            ]
        return found

    def _responses_to(
        self, level: Level, seconds: float, held: AccountCounter | None, fields: Mapping[str, str]
    ) -> _Responses | None:
        """The responses, made again if the present ones do not fit; None if the gate admits this level.

        The gate is closed to the level for `seconds`. `held` is an account that its own limit holds back, whatever the
        level. `fields` are those of the head.
        """
        form = self._codec.form(fields)
        if held is None:
            responses = self._to_level(level, form)
        else:
            seconds, responses = self._gate.seconds_closed_for(held), self._to_account(held.account, form)
        if seconds <= 0:
            return None
        now, made_for = self._clock.monotonic(), responses.encoded_for_seconds
        is_fit = seconds <= made_for and math.isinf(seconds) == math.isinf(made_for)
        if is_fit and now - responses.encoded_at <= RESPONSES_SECONDS_MAX:
            return responses
        refusal = self._gate.refusal(level, held)
        if refusal is None:
            return None
        made = self._make(refusal, fields)
        responses.encoded = [_encoded(one) for one in made]
        responses.encoded_at, responses.encoded_for_seconds = now, seconds
        responses.counters = self._metrics.refused(self._codec.name, row_of(refusal).code, made[0].status)
        responses.limited_by = refusal.limited_by if isinstance(refusal, RateLimitedError) else None
        return responses

    def _make(self, refusal: SluiceError, fields: Mapping[str, str]) -> list[Response]:
        return [self._codec.rejected(Head(fields, self._target), refusal) for _ in range(RESPONSES_MADE)]

    def _to_level(self, level: Level, form: str) -> _Responses:
        found = self._by_level.get((level, form))
        if found is None:
            found = self._by_level[level, form] = _Responses()
        return found

    def _to_account(self, account: str, form: str) -> _Responses:
        found = self._by_account.get((account, form))
        if found is None:
            if len(self._by_account) >= ACCOUNTS_MAX:
                self._by_account.clear()
            found = self._by_account[account, form] = _Responses()
        return found

    def _read(self, data: bytes) -> tuple[bytes, int, dict[str, str]] | None:
        """The id, the total length and the fields of a simple request; None if the request is not simple."""
        match = self._head.match(data)
        if match is None or match.end() > grammar.HEAD_BYTES_MAX:
            return None
        fields: dict[str, str] = {}
        for name, value in _FIELDS.findall(match[1]):
            lowered = name.decode("ascii").lower()
            if lowered in fields or lowered in _NOT_HERE or not value.isascii():
                return None
            fields[lowered] = value.decode("ascii").rstrip(" \t")
        length = grammar.length_of(fields.get("content-length", ""))
        if length is None or length > self._bytes_max or not grammar.is_host(fields.get("host", " ")):
            return None
        if fields.get("connection", "keep-alive").lower() != "keep-alive":
            return None
        try:
            self._codec.decode(Head(fields, self._target))
            if "content-encoding" in fields:
                self._codec.inflate(fields)
        except RequestError:
            return None
        name = self._request_ids.of(fields.get(request_id.HEADER)).encode()
        return name, match.end() + length, fields


class EarlyRejections:
    """The early rejections of all targets of one process."""

    def __init__(self, gate: Gate, rejections: Iterable[EarlyRejection]) -> None:
        self._gate = gate
        self._by_line = {one.begin: one for one in rejections}

    def find(self, data: bytes, client: Client) -> EarlyRejection | None:
        """The one for the target of the request at the start of `data`.

        None if there is none, or if it is known without reading `data` that the request is not rejected.
        """
        tally = client.tally or client.recent
        if tally is not None and tally.hold is None and self._gate.is_open():
            return None
        return self._by_line.get(data[: data.find(b"\n", 0, LINE_BYTES_MAX) + 1])


def _encoded(response: Response) -> EncodedResponse:
    """A response on a connection that stays open."""
    body = response.body
    head = head_of(response.status, response.media_type, len(body), response.headers.items(), keep_alive=True)
    return head, body
