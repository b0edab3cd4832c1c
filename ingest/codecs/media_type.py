"""Reads which of the two media types of events a body has."""

from enum import Enum
from functools import lru_cache

from ingest.errors import UnsupportedBodyError
from ingest.grammar import ascii_lower


class BodyKind(Enum):
    """The form of the events in a body."""

    JSON = "application/json"  # one object, or an array of objects
    NDJSON = "application/x-ndjson"  # one object a line


@lru_cache(maxsize=128)
def body_kind(content_type: str | None) -> BodyKind:
    """The kind of a Content-Type. Raises UnsupportedBodyError."""
    if content_type is None:
        raise UnsupportedBodyError("there is no Content-Type; it must be application/json or application/x-ndjson")
    media_type, *parameters = content_type.split(";")
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if ascii_lower(name) == "charset" and ascii_lower(value.strip('"')) not in ("utf-8", "utf8"):
            raise UnsupportedBodyError("the charset is not UTF-8")
    try:
        return BodyKind(ascii_lower(media_type.strip()))
    except ValueError:
        message = "the Content-Type is neither application/json nor application/x-ndjson"
        raise UnsupportedBodyError(message) from None
