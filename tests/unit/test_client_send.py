"""What `sluice send` does with the answers of a server, on a clock that is moved by hand."""

import io
import ssl
import sys
from dataclasses import dataclass, field

import pytest

from pipeline.clock import ManualClock
from sluice_client.command import GiveUpError, Item, Report, Sender, progress
from sluice_client.delivery import EVENTS_MIN, Batch
from sluice_client.wire import Endpoint, NotSentError, Response

PATIENCE_SECONDS = 60.0
ACCEPTED = Response(202, None, {})


def limited(seconds: float = 2.0) -> Response:
    return Response(429, seconds, {"code": "rate_limited", "message": "the admitted rate is used up"})


def partly(*unconfirmed: int) -> Response:
    return Response(503, 1.0, {"code": "indeterminate", "message": "some", "unconfirmed": list(unconfirmed)})


@dataclass
class Server(Endpoint):
    """Gives these answers, and then accepts everything."""

    answers: list[Response | Exception] = field(default_factory=list)
    url: str = "http://server"
    bodies: list[list[int]] = field(default_factory=list)

    def post(self, body: bytes) -> Response:
        self.bodies.append([int(line) for line in body.split(b"\n")])
        answer = self.answers.pop(0) if self.answers else ACCEPTED
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def sizes(self) -> list[int]:
        return [len(body) for body in self.bodies]


def send(server: Server, *sizes: int) -> Report:
    """Send batches of these sizes, of events 0, 1, …"""
    report, clock, first = Report(), ManualClock(), 0
    sender = Sender(server, report, clock, patience_seconds=PATIENCE_SECONDS)
    for size in sizes:
        report.read += size
        sender.send(Batch([Item(b"%d" % number, f"f:{number}", 1) for number in range(first, first + size)]))
        first += size
    return report


def test_bodies_are_smaller_after_a_429_and_grow_again() -> None:
    server = Server([limited(), limited()])
    report = send(server, 200, 200)
    assert (report.count, report.repeated, report.refused) == (400, 0, 0)
    assert server.sizes == [200, 100, 50, 50, 90, 10, 130, 70]
    assert [number for body in server.bodies[2:] for number in body] == list(range(400)), "in order, each once"


def test_bodies_do_not_become_smaller_than_that_is_good_for() -> None:
    server = Server([limited()] * 10)
    assert send(server, 200).count == 200
    assert server.sizes[9:11] == [EVENTS_MIN, EVENTS_MIN]
    server = Server([limited()] * 3)
    assert send(server, 3).count == 3
    assert server.sizes == [3] * 4


def test_the_client_never_gives_up_while_others_get_through() -> None:
    # Given a server that refuses for its rate, for an hour
    server = Server([limited(90.0)] * 40)
    assert send(server, 10).count == 10


def test_the_client_gives_up_when_nobody_gets_through() -> None:
    away: list[Response | Exception] = [NotSentError("away")] * 100
    with pytest.raises(GiveUpError, match="no event was accepted for 60 s"):
        send(Server(away), 10)
    full: list[Response | Exception] = [Response(503, 5.0, {"code": "unavailable", "message": "full"})] * 100
    with pytest.raises(GiveUpError, match="503 full"):
        send(Server(full), 10)
    # After a 429 its patience begins anew
    answers: list[Response | Exception] = [limited(50.0), *full]
    server = Server(answers)
    with pytest.raises(GiveUpError):
        send(server, 10)
    assert len(server.bodies) == 1 + 13


def test_the_client_does_not_repeat_against_a_certificate_that_it_does_not_trust() -> None:
    untrusted = NotSentError("https://ingest.example: certificate verify failed")
    untrusted.__cause__ = ssl.SSLCertVerificationError("certificate verify failed")
    server = Server([untrusted] * 2)
    with pytest.raises(GiveUpError, match="certificate verify failed; SSL_CERT_FILE names a file with another CA"):
        send(server, 10)
    assert len(server.bodies) == 1


def test_the_time_without_input_is_not_held_against_the_server() -> None:
    # Given an input that pauses for longer than the patience, as a pipe may
    server, report, clock = Server(), Report(), ManualClock()
    sender = Sender(server, report, clock, patience_seconds=PATIENCE_SECONDS)
    sender.send(Batch([Item(b"0", "f:0", 1)]))
    clock.sleep(10 * PATIENCE_SECONDS)
    # When the next batch meets one failure
    server.answers = [NotSentError("away")]
    sender.send(Batch([Item(b"1", "f:1", 1)]))
    assert report.count == 2


def test_only_what_is_not_confirmed_is_sent_again() -> None:
    server = Server([partly(1, 4), partly(0)])
    report = send(server, 6)
    assert server.bodies == [[0, 1, 2, 3, 4, 5], [1, 4], [1]]
    assert (report.count, report.repeated) == (6, 2)


@pytest.mark.parametrize("unconfirmed", [[6], [-1], ["1"], [True], "1", {}, [], None])
def test_indices_that_make_no_sense_are_not_believed(unconfirmed: object) -> None:
    answer = Response(503, 1.0, {"code": "indeterminate", "message": "some", "unconfirmed": unconfirmed})
    server = Server([answer])
    assert send(server, 6).count == 6
    assert server.sizes == [6, 6]


class Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_pipe_or_a_file_gets_no_progress_bar(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> None:
    pytest.importorskip("tqdm")
    stream = Stream(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(100, is_quiet=False) as bar:
        bar.update(100)
    assert ("100%" in stream.getvalue()) is is_terminal
    assert is_terminal or not stream.getvalue()
