"""Sluice's own protocol, `POST /api/logs`: events as JSON or NDJSON. It accepts all events of a body or none."""

from functools import partial
from typing import Annotated

import msgspec

from ingest.codecs.event_bodies import hint, parse_quickly
from ingest.codecs.media_type import BodyKind, body_kind
from ingest.codecs.slow_bodies import SlowBodies
from ingest.codecs.validation import check_times
from ingest.errors import InvalidEventsError, MalformedBodyError, error_response
from ingest.types import Codec, Decode, Headers, Response
from pipeline.event import Event
from pipeline.settings import Settings


def events_codec(settings: Settings) -> Codec:
    """The codec of one process: its slow bodies take turns."""
    slow_bodies = SlowBodies(settings)

    async def events_of(kind: BodyKind, body: bytes) -> list[Event]:
        try:
            events = parse_quickly(body, kind, settings.body_events_max)
            if events is None:
                events = await slow_bodies.events(body, kind)
        except (MalformedBodyError, InvalidEventsError) as error:
            error.hint = hint(body, kind)
            raise
        check_times(events, settings.event_time_min_ms)
        return events

    def decode(headers: Headers) -> Decode:
        return partial(events_of, body_kind(headers.get("content-type")))

    return Codec(decode, _accepted, error_response)


class Accepted(msgspec.Struct, forbid_unknown_fields=True):
    """The answer 202: the number of events."""

    accepted: Annotated[int, msgspec.Meta(ge=1)]


def _accepted(count: int) -> Response:
    return Response(202, msgspec.json.encode(Accepted(count)))
