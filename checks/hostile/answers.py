"""Sends the JSON cases and a corpus to a running ingest, and lists the wrong answers."""

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Final

from checks.hostile.cases import GOOD, cases, within_event
from checks.hostile.oracle import CHUNKED_HEAD, judge, kind_of
from checks.hostile.protocols import TARGETS, Target, target_of
from checks.testbed.wire import Wire, request
from ingest.framing import found_coding

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
SECONDS_MAX: Final = 30.0  # for one answer, on a busy machine
_OF_CASES: Final = {"y": {202, 422}, "n": {400}, "i": {202, 400, 422}}
# By the oracle's outcome. Its limits are smaller than ingest's, and it checks gzip but not the content in it.
_OF_OUTCOMES: Final = {
    "events": {202},
    "invalid": {422},
    "malformed": {400},
    "too_large": {202, 400, 413, 422},
    "inflated": {202, 400, 422},
}
_OF_PROTOCOLS: Final = {
    "events": {200, 202, 204},
    "nothing": {200, 202, 204},
    "malformed": {400},
    "too_large": {200, 202, 204, 400, 413},
    "inflated": {202, 413},
    "plain": {202},
}


def wrong_answers_to_cases(port: int, content_type: str) -> tuple[int, list[str]]:
    """Send each case as a body and within an event; returns the number of requests, and the wrong answers."""
    wrong = []
    count = 0
    with Wire(port, seconds_max=SECONDS_MAX) as wire:
        for name, body in cases():
            for where, sent in (("alone", body), ("within an event", within_event(body))):
                if sent is None or (content_type == NDJSON and b"\n" in sent):
                    continue
                allowed = _OF_CASES[name[0]]
                if content_type == NDJSON and not sent.strip():
                    allowed = {422}  # a batch of no lines
                wire.send(request(sent, content_type=content_type))
                status = wire.answer().status
                count += 1
                if status not in allowed:
                    wrong.append(f"{name} {where} as {content_type}: {status}")
        wrong += _is_well(wire)
    return count, wrong


def wrong_answers_to_corpus(port: int, inputs: Iterable[tuple[str, bytes]]) -> tuple[Counter[str], list[str]]:
    """Answers by kind and status, and the wrong ones; inputs are (name, bytes) as `oracle.judge` takes them."""
    seen = Counter[str]()
    wrong = []
    for name, data in inputs:
        kind = kind_of(data)
        match kind:
            case "H":
                status = _answer_to_raw(port, data[1:])
            case "C":
                status = _answer_to_raw(port, CHUNKED_HEAD + data[1:])
            case "P":
                status = _answer_to_protocol(port, *target_of(data[1:]))
            case "D":
                status = _answer_to_protocol(port, TARGETS["g"], data[1:])
            case _:
                status = _answer_to_body(port, kind, data[1:])
        seen[f"{kind} {status or 'none'}"] += 1
        if kind in "HC":
            is_right = status in (None, 100, 503) or 200 <= status < 500  # 100: ingest waits for the body
        elif kind in "PD":
            is_right = status in _OF_PROTOCOLS[judge(data)]
        else:
            is_right = status in _OF_OUTCOMES[judge(data)]
        if not is_right:
            wrong.append(f"{name} ({kind}): {status}")
    with Wire(port, seconds_max=SECONDS_MAX) as wire:
        wrong += _is_well(wire)
    return seen, wrong


def wrong_answers_of_protocols(port: int) -> tuple[int, list[str]]:
    """Send each case as a body to each other protocol; returns the number of requests, and the wrong answers.

    Ingest may accept a body without an event, or refuse all of it. If the protocol accepts any content, it accepts it.
    """
    wrong = []
    count = 0
    with Wire(port, seconds_max=SECONDS_MAX) as wire:
        for letter, target in TARGETS.items():
            for name, body in cases():
                sent = target.pack(body)
                is_packed = found_coding(sent, declared="gzip") is not None
                allowed = {202} if target.takes_all and not is_packed else {200, 202, 204, 400, 413}
                wire.send(_to_protocol(target, sent))
                status = wire.answer().status
                count += 1
                if status not in allowed:
                    wrong.append(f"{name} for {target.path} ({letter}): {status}")
        wrong += _is_well(wire)
    return count, wrong


def _to_protocol(target: Target, body: bytes) -> bytes:
    return request(body, path=target.path, content_type=target.media_type, headers=target.headers)


def _answer_to_protocol(port: int, target: Target, body: bytes) -> int:
    with Wire(port, seconds_max=SECONDS_MAX) as wire:
        wire.send(_to_protocol(target, body))
        return wire.answer().status


def _is_well(wire: Wire) -> list[str]:
    """A good event is accepted on the same connection."""
    wire.send(request(GOOD))
    status = wire.answer().status
    return [] if status == 202 else [f"a good event after all that: {status}"]


def _answer_to_body(port: int, kind: str, body: bytes) -> int:
    headers = {"Content-Encoding": "gzip"} if kind == "G" else None
    with Wire(port, seconds_max=SECONDS_MAX) as wire:
        wire.send(request(body, content_type=NDJSON if kind == "N" else JSON, headers=headers))
        return wire.answer().status


def _answer_to_raw(port: int, data: bytes) -> int | None:
    """The status of the first answer; None if the connection is closed without one."""
    with Wire(port, seconds_max=SECONDS_MAX) as wire, contextlib.suppress(EOFError, ConnectionError):
        wire.send(data)
        wire.send_eof()  # the rest of a body never comes
        return wire.answer(has_body=False).status
    return None
