"""The fuzzer's first inputs: the JSON cases, events, gzip streams, heads, chunks, and bodies of other protocols."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from checks.hostile.cases import GOOD, cases
from checks.hostile.oracle import EVENTS_MAX
from checks.hostile.protocol_seeds import protocol_seeds

_HEAD: Final = b"POST /api/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_LINES: Final = (
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"content-length:5",
    b"Content-Length:\t5 ",
    b"X-Request-ID: a b\r\nContent-Length: 5",
    b"Expect: 100-continue\r\nContent-Length: 5",
    b"Connection: close, TE\r\nContent-Length: 5",
    b"Transfer-Encoding: gzip, chunked",
    b"X: a\rb\r\nContent-Length: 5",
    b"X: \xff\r\nContent-Length: 0",
    b" Content-Length: 5",
    b"Host: y\r\nContent-Length: 5",
)

_CHUNKS: Final = (
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\nPOST /",
    b"3;a=b\r\nabc\r\n2 \r\nde\r\n00\r\n\r\n",
    b"A\r\n0123456789\r\n0;last\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n0\r\n\r\n",
    b"100000005\r\nhello\r\n0\r\n\r\n",
    b"11000\r\n" + b"x" * 100,
    b"5;a\x01\r\nhello\r\n0\r\n\r\n",
    b"5" + b" " * 300 + b"\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
    b"0\r\n\n",
    b"5\r\nhel",
    b"\r\n",
    b"-1\r\n",
)


def seeds() -> Iterator[bytes]:
    """Inputs as `checks.hostile.oracle.judge` takes them."""
    yield from protocol_seeds()
    rich = GOOD[:-1] + b',"eventId":"e","attributes":{"a":1,"b":-1.5e3,"c":true,"d":"x\\u00e9"}}'
    for _, body in cases():
        if len(body) < 500:
            yield b"J" + body
    changed = rich.replace(b'"m"', b'"another"')
    for number in (b"1e-400", b"-0.0", b"0.12345678901234567890", b"9007199254740993.0", b"0.10"):
        yield b"J" + rich.replace(b"-1.5e3", number)
    for body in (b"[%b,%b]" % (rich, rich), b"[%b,%b,%b]" % (rich, GOOD, changed)):
        yield b"J" + body
        yield b"N" + body[1:-1].replace(b"},{", b"}\n{")
    for body in (rich, b"[" + rich + b"," + GOOD + b"]", rich.replace(b'"m"', b'"\\ud83d\\ude00\\u0000"')):
        yield b"J" + body
        yield b"N" + body + b"\n\r\n" + GOOD + b"\n"
        yield b"G" + gzip.compress(body, mtime=0)
    yield b"J[" + b"1," * EVENTS_MAX + b"1]"
    yield b"N" + b"1\n" * (EVENTS_MAX + 1)
    yield b"G" + gzip.compress(GOOD[:20], mtime=0) + gzip.compress(GOOD[20:], mtime=0) + b"\0\0"
    yield b"G" + gzip.compress(b" " * 70_000, mtime=0)
    for lines in _LINES:
        yield b"H" + _HEAD + lines + b"\r\n\r\n"
    for chunks in _CHUNKS:
        yield b"C" + chunks
    yield b"HGET / HTTP/1.0\r\n\r\n"
    yield b"HHEAD http://x/?a=%20 HTTP/1.1\r\nHost: x\r\n\r\n"


def write_seeds(folder: Path) -> int:
    """Write each seed to a file in the folder; returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(set(seeds()))
    for number, seed in enumerate(found):
        (folder / f"seed-{number:03}").write_bytes(seed)
    return len(found)
