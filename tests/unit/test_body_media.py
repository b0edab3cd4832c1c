"""Content types, and inflating within a limit."""

import gzip
import tracemalloc
import zlib

import pytest

from ingest.codecs.media_type import BodyKind, body_kind
from ingest.errors import BodyTooLargeError, UnsupportedBodyError
from ingest.framing import declared_coding, inflate


def test_a_bomb_is_not_held_in_memory() -> None:
    # Given gzip of 100 MB
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(compressor.compress(b" " * (1 << 20)) for _ in range(100)) + compressor.flush()
    tracemalloc.start()
    # When it is inflated to at most one
    with pytest.raises(BodyTooLargeError):
        inflate(bomb, 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Then that is about what was held
    assert peak < 4 << 20


def test_exactly_the_limit_is_taken() -> None:
    assert inflate(gzip.compress(b"x" * 1000), 1000) == b"x" * 1000
    assert inflate(gzip.compress(b"x" * 600) + gzip.compress(b"x" * 400), 1000) == b"x" * 1000
    with pytest.raises(BodyTooLargeError):
        inflate(gzip.compress(b"x" * 600) + gzip.compress(b"x" * 401), 1000)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("application/json", BodyKind.JSON),
        ("Application/JSON; charset=UTF-8", BodyKind.JSON),
        ('application/json;charset="utf-8"; x=y', BodyKind.JSON),
        ("application/x-ndjson", BodyKind.NDJSON),
    ],
)
def test_content_types(given: str, kind: BodyKind) -> None:
    assert body_kind(given) is kind


@pytest.mark.parametrize("given", [None, "", "json", "application/json, text/html", "application/json;charset=utf-16"])
def test_other_content_types(given: str | None) -> None:
    with pytest.raises(UnsupportedBodyError):
        body_kind(given)


def test_content_codings() -> None:
    assert declared_coding("GZIP", 9) is not None
    assert declared_coding(" x-gzip ", 9) is not None
    assert declared_coding(None, 9) is None
    assert declared_coding("identity", 9) is None
    for other in ("deflate", "br", "gzip, gzip"):
        with pytest.raises(UnsupportedBodyError):
            declared_coding(other, 9)
