"""Sluice's own protocol, `POST /api/logs`: events as JSON or NDJSON. It accepts all events of a body or none."""

from functools import lru_cache, partial
from typing import Annotated, Final

import msgspec

from ingest.codecs.event_bodies import hint, parse_quickly
from ingest.codecs.media_type import BodyKind, body_kind
from ingest.codecs.slow_bodies import SlowBodies
from ingest.codecs.validation import check_times
from ingest.errors import InvalidEventsError, MalformedBodyError, error_response
from ingest.framing import declared_coding, without_mark
from ingest.types import Batch, Codec, Decode, Headers, Inflate, RequestHead, Response
from pipeline.errors import SluiceError
from pipeline.names import ProtocolName
from pipeline.settings import Settings

_COUNTS_KEPT: Final = 128  # clients send bodies of few different sizes


def events_codec(settings: Settings) -> Codec:
    """The codec of one process: its slow bodies take turns."""
    slow_bodies = SlowBodies(settings)

    async def batch_of(kind: BodyKind, body: bytes) -> Batch:
        body = without_mark(body)
        try:
            events = parse_quickly(body, kind, settings.body_events_max)
            if events is None:
                events = await slow_bodies.events(body, kind)
        except (MalformedBodyError, InvalidEventsError) as error:
            error.hint = hint(body, kind)
            raise
        check_times(events, settings.event_time_min_ms)
        return Batch(events, partial(_accepted, len(events)))

    def decode(head: RequestHead) -> Decode:
        return partial(batch_of, body_kind(head.headers.get("content-type")))

    def inflate(headers: Headers) -> Inflate | None:
        return declared_coding(headers.get("content-encoding"), settings.body_bytes_max)

    return Codec(ProtocolName.EVENTS, settings.body_bytes_max, inflate, decode, _rejected)


class Accepted(msgspec.Struct, forbid_unknown_fields=True):
    """The answer 202: the number of events."""

    accepted: Annotated[int, msgspec.Meta(ge=1)]


def _rejected(_head: RequestHead, error: SluiceError) -> Response:
    return error_response(error)


@lru_cache(maxsize=_COUNTS_KEPT)
def _accepted(count: int) -> Response:
    return Response(202, msgspec.json.encode(Accepted(count)))
