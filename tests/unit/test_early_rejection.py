"""How long a look at the gate is good for the requests of a connection."""

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from ingest.app import EVENTS_PATH
from ingest.codecs.events import events_codec
from ingest.errors import RateLimitedError
from ingest.http.early_rejection import ConnectionRejections, EarlyRejection, EarlyRejections
from ingest.http.request_id import RequestIds
from ingest.types import Lifecycle
from pipeline.metrics import IngestMetrics
from pipeline.names import LEVEL_HIGHEST
from pipeline.settings import Settings

REQUEST = b"POST /api/logs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
NOW = 100.0  # monotonic


class Gate:
    """A gate that is closed for `seconds`; it counts the looks at it."""

    has_levels = False
    admits_all_levels = True

    def __init__(self) -> None:
        self.seconds = 60.0
        self.looks = 0

    def is_open(self) -> bool:
        return self.seconds <= 0

    def level_of(self, *_: object) -> None:
        return None

    def seconds_closed(self, *_: object) -> float:
        self.looks += 1
        return self.seconds

    def refusal(self, *_: object) -> RateLimitedError | None:
        return RateLimitedError(self.seconds, quota=1.0, left=0) if self.seconds > 0 else None

    def note_rejected(self, _: object) -> None:
        pass


def connection(gate: Gate) -> ConnectionRejections:
    """That of a client without a key, whose account has no limit of its own."""
    request_ids, settings = RequestIds(), Settings()
    typed_gate: Any = gate
    rejection = EarlyRejection(
        EVENTS_PATH, events_codec(settings), gate=typed_gate, metrics=IngestMetrics(CollectorRegistry()),
        request_ids=request_ids, bytes_max=settings.body_bytes_max,
    )  # fmt: skip
    tally = SimpleNamespace(hold=None, refuse_unread=lambda _: None)
    client: Any = SimpleNamespace(has_keys=False, tally=tally, recent=None, level_max=LEVEL_HIGHEST, field="")
    return ConnectionRejections(EarlyRejections(typed_gate, [rejection], request_ids, Lifecycle()), client)


def test_tokens_that_nobody_predicted_wait_for_a_millisecond_at_most() -> None:
    gate = Gate()
    rejections = connection(gate)
    assert rejections.reject(REQUEST, NOW) is not None
    # When tokens come that the gate did not predict
    gate.seconds, gate.looks = 0.0, 0
    # Then requests are rejected without a look at the gate, and a millisecond after the last look they are not
    assert rejections.reject(REQUEST, NOW + 0.0009) is not None
    assert gate.looks == 0
    assert rejections.reject(REQUEST, NOW + 0.0011) is None


def test_tokens_that_the_gate_predicted_do_not_wait() -> None:
    gate = Gate()
    gate.seconds = 0.0004
    rejections = connection(gate)
    assert rejections.reject(REQUEST, NOW) is not None
    gate.seconds = 0.0
    assert rejections.reject(REQUEST, NOW + 0.0005) is None
