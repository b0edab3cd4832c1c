"""What clients send: events with wide content, in bodies of all shapes that ingest takes."""

import gzip
import json
import random
from typing import Any, Final

MESSAGE_BYTES_MAX: Final = 64 * 1024
ATTRIBUTES_BYTES_MAX: Final = 8 * 1024
TIMESTAMP_MS_MIN: Final = 100_000_000_000
TIMESTAMP_MS_MAX: Final = 253_402_300_799_999
# Shares of events. The longest events are rare, because a body has a limit of bytes.
_LONG_SHARE: Final = 1 / 400
_WIDE_SHARE: Final = 1 / 20
_LONG_IN_BODY_MAX: Final = 4
_WIDE_CHARS: Final = 4000

_SEVERITIES: Final[dict[str, str]] = {
    **{name: name for name in ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")},
    **{"info": "INFO", "Error": "ERROR", "WARNING": "WARN", "warning": "WARN", "CRITICAL": "FATAL"},
}
_SPELLINGS: Final = tuple(_SEVERITIES)
_ODD_SPELLING: Final = "fAtAl"  # sends the whole body the slow path through ingest
_SEVERITIES[_ODD_SPELLING] = "FATAL"
_ODD_SHARE: Final = 1 / 40  # of bodies; these cost ingest more than the others
# Text that broke other systems: line ends that NDJSON does not treat as such, quotes, COPY separators, right-to-left,
# joiners.
_HARD: Final = "\t\r\n\\\"'{}\u0001\u007f\u0085\u2028\u2029\u200d\u202e\ufeff\ufffd,;|\\N\\."
_SURROGATES: Final = range(0xD800, 0xE000)


def severity_of(given: str) -> str:
    """The stored severity for a spelling."""
    return _SEVERITIES[given]


def any_text(pick: random.Random, chars: int) -> str:
    """Characters of every Unicode plane but NUL and surrogates, the same for the same picks."""
    made: list[str] = []
    while len(made) < chars:
        plane = pick.choice((0, 0, 1, pick.randrange(17)))
        code = (plane << 16) + pick.randrange(0x10000)
        if code and code not in _SURROGATES:
            made.append(pick.choice((chr(code), pick.choice(_HARD))))
    return "".join(made)


class Content:
    """Makes events; the same ones for the same seed."""

    def __init__(self, pick: random.Random) -> None:
        self._pick = pick
        self._wide = any_text(pick, _WIDE_CHARS)  # made once: events take pieces of it
        self._names = [self._text(12) for _ in range(5)]  # in correlation ids and sources, which repeat

    def _text(self, chars: int) -> str:
        at = self._pick.randrange(_WIDE_CHARS - chars)
        return self._wide[at : at + chars]

    def events(self, keys: list[str]) -> list[dict[str, Any]]:
        """An event for each key."""
        long_left = _LONG_IN_BODY_MAX
        made = []
        for key in keys:
            is_long = long_left > 0 and self._pick.random() < _LONG_SHARE
            long_left -= is_long
            made.append(self.event(key, is_long=is_long))
        if self._pick.random() < _ODD_SHARE:
            self._pick.choice(made)["severity"] = _ODD_SPELLING
        return made

    def event(self, key: str, *, is_long: bool = False) -> dict[str, Any]:
        """An event whose message begins with its key: every other field is free, and may be missing."""
        pick = self._pick
        number = pick.getrandbits(40)
        is_wide = pick.random() < _WIDE_SHARE
        event: dict[str, Any] = {
            "correlationId": f"order-{number % 211}" + (pick.choice(self._names) if is_wide else ""),
            "severity": pick.choice(_SPELLINGS),
            "message": f"{key} {self._message(number, is_wide=is_wide, is_long=is_long)}",
            "source": f"faults/{number % 7}" + (pick.choice(self._names) if is_wide else ""),
            "timestamp": self._timestamp(number),
        }
        if is_long:
            event["message"] = _padded(event["message"], pick)
        attributes = self._attributes(number, is_wide=is_wide)
        if attributes is not None:
            event["attributes"] = attributes
        if number % 3:
            return event
        names = list(event)
        pick.shuffle(names)
        return {name: event[name] for name in names}

    def _message(self, number: int, *, is_wide: bool, is_long: bool) -> str:
        if is_wide or is_long:
            return self._text(number % 60)
        return f"{number}\tüber \\N {{}}\n" + "x" * (number % 160)

    def _timestamp(self, number: int) -> int:
        match number % 40:
            case 0:
                return TIMESTAMP_MS_MIN
            case 1:
                return TIMESTAMP_MS_MAX
            case _:
                return 1_600_000_000_000 + number % 100_000_000_000

    def _attributes(self, number: int, *, is_wide: bool) -> dict[str, Any] | None:
        """None, an empty object, a few attributes, or the maximum; values of every type, some at their limits."""
        match number % 10:
            case 0 | 1:
                return None
            case 2:
                return {}
            case 3 if is_wide:
                return {f"{self._text(3)}{n}": self._text(4) for n in range(64)}
            case _:
                plain = {"n": number, "share": (number % 8) + 0.125, "even": number % 2 == 0, "text": "ü"}
                if is_wide:
                    plain |= {"low": -(2**63), "high": 2**63 - 1, "small": 1.5e-7, "": "", self._text(5): True}
                return plain


def _padded(message: str, pick: random.Random) -> str:
    """A message filled up to the longest that is allowed."""
    filler = pick.choice(("x", "é", "\U0001f4a1", "\u2028"))
    left = MESSAGE_BYTES_MAX - len(message.encode())
    count, rest = divmod(left, len(filler.encode()))
    return message + filler * count + "y" * rest


def encoded(events: list[dict[str, Any]], number: int) -> tuple[bytes, dict[str, str]]:
    """A body in one of the forms that ingest takes, in turn, and its headers."""
    shape = random.Random(number)
    is_ascii = shape.random() < 0.5
    headers = {"Content-Type": shape.choice(("application/json", "application/json; charset=utf-8"))}
    if len(events) == 1 and number % 2:
        data = json.dumps(events[0], ensure_ascii=is_ascii, indent=shape.choice((None, 2))).encode()
    elif number % 3 == 0:
        headers["Content-Type"] = "application/x-ndjson"
        end = shape.choice(("\n", "\r\n", "\n\n"))
        lines = [json.dumps(event, ensure_ascii=is_ascii) for event in events]
        data = (end.join(lines) + shape.choice(("", end))).encode()
    else:
        data = json.dumps(events, ensure_ascii=is_ascii, separators=shape.choice((None, (",", ":")))).encode()
    if number % 4 == 0:
        headers["Content-Encoding"] = "gzip"
        half = len(data) // 2
        # Two members are one stream, as RFC 1952 has it.
        parts = (data,) if shape.random() < 0.7 else (data[:half], data[half:])
        data = b"".join(gzip.compress(part, 1) for part in parts)
    return data, headers


def pieces(data: bytes, number: int) -> list[bytes] | None:
    """The chunks of a body if it is sent with Transfer-Encoding: chunked; None if it is sent with its length."""
    if number % 5:
        return None
    size = max(1, len(data) // 3)
    return [data[at : at + size] for at in range(0, len(data), size)]
