"""Connections that do nothing, that send a byte now and then, or bodies that are hard to read: a program of its own.

`python -m checks.hostile.flood PORT --idle 500 --heads 100 --bodies 100 --seconds 10` says `ready` once all are
open, goes on until its time is up, and prints what became of them as JSON.
"""

import argparse
import asyncio
import gzip
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import cramjam

HEAD: Final = b"POST /api/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
OPEN_SECONDS_MAX: Final = 30.0
NICENESS: Final = 10  # real attackers use other machines: only ingest's work for them counts, not theirs
AGAIN_SECONDS: Final = 0.2  # between the end of a connection and the next

# Bodies of a mebibyte that cost a parser as much work as possible.
SLOW_BODIES: Final = (
    b"[" + b"[]," * 349_000 + b"[]]",
    b'{"a":[' + b"{}," * 340_000 + b"1]}",
    b'{"a":[' + (b"[" * 30 + b"]" * 30 + b",") * 16_000 + b"1]}",
    b'{"\\ud800":[' + b'"[",' * 250_000 + b"1]}",
    b"{" + b",".join(b'"%d":1' % number for number in range(80_000)) + b"}",
)
# The same for other protocols: (path, media type, body). The compressed ones inflate to the largest size allowed.
_JSON: Final = "application/json"
_PROTOBUF: Final = "application/x-protobuf"
HARD_FOR_OTHERS: Final = (
    ("/api/logs/lines", "text/plain", b"[" + b"1," * 500_000 + b"1]"),
    ("/api/logs/lines", "text/plain", b'[{"a":[' + b"[]," * 340_000 + b"1]}]"),
    ("/api/logs/lines", "text/plain", gzip.compress(b"\n" * 16_000_000 + b"x", 1)),
    ("/gelf", _JSON, b'{"a":' * 200_000),
    ("/gelf", _JSON, b"{}\n" * 340_000),
    ("/v1/logs", _JSON, b'{"resourceLogs":[' + b"{}," * 340_000 + b"{}]}"),
    ("/v1/logs", _JSON, gzip.compress(b'{"resourceLogs":[' + b" " * 16_000_000 + b"]}", 1)),
    ("/v1/logs", _PROTOBUF, b"\x0a\x00" * 500_000),
    ("/_bulk", _JSON, b'{"index":{}}\n{}\n' * 60_000),
    ("/loki/api/v1/push", _JSON, b'{"streams":[' + b"{}," * 340_000 + b"{}]}"),
    ("/loki/api/v1/push", _JSON, b'{"streams":[' + b"[" * 300_000 + b"]" * 300_000 + b"]}"),
    ("/loki/api/v1/push", _PROTOBUF, bytes(cramjam.snappy.compress_raw(b"\x0a\x00" * 5_000_000))),
    ("/services/collector/event", _JSON, b"{}" * 500_000),
)


@dataclass
class Fate:
    """How the connections ended. `cut_seconds`: from the first byte of a trickling connection to its end."""

    opened: int = 0
    refused: int = 0  # not even opened
    answers: Counter[str] = field(default_factory=Counter)  # by status; `none`: closed without one
    cut_seconds: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)  # of slow bodies, by status
    others: Counter[str] = field(default_factory=Counter)  # answers to slow bodies of other protocols, by status
    oldest_seconds: float = 0.0  # of the connections that still trickle at the end

    def json(self) -> str:
        """A summary as JSON."""
        cut = sorted(self.cut_seconds)
        document = {**vars(self), "cut_seconds": [round(cut[0], 2), round(cut[-1], 2)] if cut else []}
        return json.dumps(document)


class Flood:
    """The connections."""

    def __init__(self, port: int, byte_seconds: float) -> None:
        self.fate = Fate()
        self._port = port
        self._byte_seconds = byte_seconds
        self._open = 0
        self.is_over = False

    async def hold(self) -> None:
        """Keep a silent connection open; open a new one if the server closes it."""
        while not self.is_over:
            connection = await self._connect()
            if connection is None:
                continue
            reader, writer = connection
            await self._read_answer(reader)
            writer.close()
            self._open -= 1
            await asyncio.sleep(AGAIN_SECONDS)

    async def trickle(self, first: bytes, rest: bytes) -> None:
        """Send `first` at once, then `rest` byte by byte, until the server answers or closes; then repeat."""
        while not self.is_over:
            connection = await self._connect()
            if connection is None:
                continue
            reader, writer = connection
            began = time.monotonic()
            answer = asyncio.create_task(self._read_answer(reader))
            try:
                writer.write(first)
                for byte in rest:
                    writer.write(bytes([byte]))
                    await asyncio.wait([answer], timeout=self._byte_seconds)
                    if answer.done():
                        break
                await answer
            except OSError:
                await answer
            finally:
                took = time.monotonic() - began
                if answer.done() and not answer.cancelled():
                    self.fate.cut_seconds.append(took)
                else:
                    answer.cancel()
                    self.fate.oldest_seconds = max(self.fate.oldest_seconds, took)
                writer.close()
                self._open -= 1
            await asyncio.sleep(AGAIN_SECONDS)

    async def send_hard(self, requests: Sequence[bytes], answers: Counter[str]) -> None:
        """Send slow bodies one after another, each after the last answer; `answers` counts the statuses."""
        while not self.is_over:
            connection = await self._connect()
            if connection is None:
                continue
            reader, writer = connection
            try:
                while not self.is_over:
                    for request in requests:
                        writer.write(request)
                        head = await reader.readuntil(b"\r\n\r\n")
                        length = re.search(rb"content-length: (\d+)", head)
                        await reader.readexactly(int(length[1]) if length else 0)
                        answers[head[9:12].decode()] += 1
            except (OSError, asyncio.IncompleteReadError):
                answers["none"] += 1
            finally:
                writer.close()
                self._open -= 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            connection = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            self.fate.refused += 1
            await asyncio.sleep(AGAIN_SECONDS)
            return None
        self.fate.opened += 1
        self._open += 1
        return connection

    async def _read_answer(self, reader: asyncio.StreamReader) -> None:
        """Wait for the end of the connection, and record its answer."""
        try:
            data = await reader.read()
        except OSError:
            data = b""
        self.fate.answers[data[9:12].decode() if data.startswith(b"HTTP/1.1 ") else "none"] += 1

    async def until_open(self, count: int) -> None:
        """Wait until `count` connections are open at once."""
        async with asyncio.timeout(OPEN_SECONDS_MAX):
            while self._open < count:  # noqa: ASYNC110  # they are counted where they are opened
                await asyncio.sleep(0.05)


async def flood(
    port: int, *, idle: int, heads: int, bodies: int, hard: int, others: int, seconds: float, byte_seconds: float
) -> Fate:
    """Keep the given number of connections of each kind open for `seconds`."""
    one = Flood(port, byte_seconds)
    slow_head = HEAD + b"X: " + b"y" * 4000
    by_length = HEAD + b"Content-Length: 5000\r\n\r\n"
    by_chunks = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    tasks = [asyncio.create_task(one.hold()) for _ in range(idle)]
    tasks += [asyncio.create_task(one.trickle(b"", slow_head)) for _ in range(heads)]
    for number in range(bodies):
        ways = [(by_length, b" " * 5000), (by_chunks, b"1\r\n \r\n" * 1000)]
        tasks.append(asyncio.create_task(one.trickle(*ways[number % 2])))
    own = [_post("/api/logs", _JSON, body) for body in SLOW_BODIES]
    of_others = [_post(*each) for each in HARD_FOR_OTHERS] if others else []
    tasks += [asyncio.create_task(one.send_hard(own, one.fate.refusals)) for _ in range(hard)]
    for number in range(others):  # each begins with a different body
        first = number * len(of_others) // others
        requests = [*of_others[first:], *of_others[:first]]
        tasks.append(asyncio.create_task(one.send_hard(requests, one.fate.others)))
    try:
        await one.until_open(int(0.99 * len(tasks)))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.sleep(seconds)
    finally:
        one.is_over = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return one.fate


def _post(path: str, media_type: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def main() -> int:
    """Flood, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m checks.hostile.flood", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--heads", type=int, default=100)
    parser.add_argument("--bodies", type=int, default=100)
    parser.add_argument("--hard", type=int, default=0)
    parser.add_argument("--others", type=int, default=0, help="connections with slow bodies of other protocols")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--byte-seconds", type=float, default=0.2)
    given = parser.parse_args()
    os.nice(NICENESS)
    fate = asyncio.run(
        flood(
            given.port,
            idle=given.idle,
            heads=given.heads,
            bodies=given.bodies,
            hard=given.hard,
            others=given.others,
            seconds=given.seconds,
            byte_seconds=given.byte_seconds,
        )
    )
    sys.stdout.write(fate.json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
