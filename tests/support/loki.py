"""Loki's push request in protobuf, as its clients encode it."""

from collections.abc import Mapping


def varint(number: int) -> bytes:
    """A number of protobuf; a negative one has 64 bits."""
    number &= (1 << 64) - 1
    data = b""
    while number > 0x7F:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A field with a length: a text, bytes or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(time_ns: int, line: str | bytes, metadata: Mapping[str, str] | Mapping[bytes, bytes] | None = None) -> bytes:
    """The field of a stream that is one entry. Structured metadata comes as pairs."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    content = field(1, b"\x08" + varint(seconds) + b"\x10" + varint(nanos)) + field(2, _bytes(line))
    for name, value in (metadata or {}).items():
        content += field(3, field(1, _bytes(name)) + field(2, _bytes(value)))
    return field(2, content)


def stream(labels: str | bytes, *entries: bytes) -> bytes:
    """The field of a push request that is one stream."""
    return field(1, field(1, _bytes(labels)) + b"".join(entries))


def push(*streams: bytes) -> bytes:
    """A push request."""
    return b"".join(streams)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
