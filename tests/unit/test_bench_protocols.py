"""What M11 sends: the same records in each protocol."""

import asyncio

import pytest

from checks.bench.arguments import marks_of
from checks.bench.protocol_bodies import (
    ENVIRONMENT,
    FORMS,
    HOST,
    MESSAGE,
    OWN_PLAIN,
    OWN_TRACED,
    SERVICE,
    Form,
    records_of,
)
from checks.bench.protocols import BATCH_RECORDS, GOALS
from ingest.app import routes
from ingest.types import Batch, Response
from pipeline.clock import SystemClock
from pipeline.settings import Settings
from support.protocols import Sent, accepted

CODECS = {route.path: route.codec for route in routes(Settings(), SystemClock()) if route.format is None}


def sent(form: Form, count: int) -> tuple[Batch, Response]:
    """The batch of a request, and its answer."""
    head, _, body = form.request(records_of(count)).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert fields["content-length"] == str(len(body))
    return asyncio.run(accepted(CODECS[form.path], Sent(body, fields, first.split()[1])))


@pytest.mark.parametrize("count", [1, BATCH_RECORDS])
@pytest.mark.parametrize("form", [OWN_TRACED, OWN_PLAIN, *FORMS], ids=lambda form: form.name)
def test_each_form_has_the_same_records(form: Form, count: int) -> None:
    batch, answer = sent(form, count)
    own, _ = sent(OWN_TRACED if form.is_traced else OWN_PLAIN, count)
    # Then all are taken, and are the events that Sluice's own JSON has
    assert (answer.status, batch.rejected, len(batch.events)) == (form.status, 0, count)
    for event, expected, record in zip(batch.events, own.events, records_of(count), strict=True):
        assert (event.message, event.source, event.severity) == (MESSAGE, SERVICE, "INFO")
        assert (event.timestamp, event.correlation_id) == (expected.timestamp, expected.correlation_id)
        values = (event.attributes or {}).values()
        assert {HOST, ENVIRONMENT} <= set(values)
        assert not form.is_traced or {record.span_id, record.user} <= set(values)
        # with as many attributes, up to names that a protocol has twice, and nanoseconds that not all have
        assert abs(len(values) - len(expected.attributes or {})) <= 3


def test_every_goal_is_of_a_form() -> None:
    assert set(GOALS) <= {form.name for form in FORMS if form.has_batches}
    assert marks_of("m11") == ["M11"]
