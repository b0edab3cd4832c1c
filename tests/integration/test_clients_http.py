"""Programs that send with an HTTP library, Datadog's client or CloudEvents' SDK, and repeat what was not accepted."""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import aiohttp
import datadog_api_client
import httpx
import pytest
import requests
import urllib3
from cloudevents.core.bindings.http import to_structured_event
from cloudevents.core.v1.event import CloudEvent
from datadog_api_client.exceptions import ApiException
from datadog_api_client.v2.api.logs_api import LogsApi
from datadog_api_client.v2.model.http_log import HTTPLog
from datadog_api_client.v2.model.http_log_item import HTTPLogItem

from checks.loadgen.proxy import Proxy
from checks.testbed.waiting import WAIT_SECONDS_MAX
from support.running_ingest import RunningIngest, eventually, metric, restarted, running_ingest, sample

BEGAN: Final = datetime(2026, 11, 26, tzinfo=UTC)
RATE: Final = 200.0  # events/s
OWED: Final = 100  # events
COUNT: Final = 60
BATCH: Final = 20
# What each has in place of an answer: a connection that is cut, or that is refused
CUTS: Final = (requests.ConnectionError, httpx.TransportError, aiohttp.ClientError, urllib3.exceptions.HTTPError)
# and a slow answer, once the time that each was given has passed
SLOW: Final = (requests.Timeout, httpx.TimeoutException, TimeoutError, urllib3.exceptions.TimeoutError)

# Sends one batch: its numbers. Returns the status of the answer; raises what the client raises without one.
Send = Callable[[range], int]


def own_json(numbers: range) -> list[dict[str, Any]]:
    """Events of Sluice's own contract: their ids are why a repeat is stored once."""
    return [sample(eventId=f"order-{number}", message=f"EV{number}") for number in numbers]


@contextlib.contextmanager
def with_requests(port: int, seconds_max: float = WAIT_SECONDS_MAX) -> Iterator[Send]:
    with requests.Session() as session:
        yield (
            lambda numbers: (
                session.post(
                    f"http://127.0.0.1:{port}/api/logs", json=own_json(numbers), timeout=seconds_max
                ).status_code
            )
        )


@contextlib.contextmanager
def with_httpx(port: int, seconds_max: float = WAIT_SECONDS_MAX) -> Iterator[Send]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=seconds_max) as client:
        yield lambda numbers: client.post("/api/logs", json=own_json(numbers)).status_code


@contextlib.contextmanager
def with_aiohttp(port: int, seconds_max: float = WAIT_SECONDS_MAX) -> Iterator[Send]:
    async def begin() -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=seconds_max)
        return aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout)

    async def send(session: aiohttp.ClientSession, numbers: range) -> int:
        async with session.post("/api/logs", json=own_json(numbers)) as response:
            return int(response.status)

    with asyncio.Runner() as runner:
        session = runner.run(begin())
        try:
            yield lambda numbers: runner.run(send(session, numbers))
        finally:
            runner.run(session.close())


@contextlib.contextmanager
def with_datadog(port: int, seconds_max: float = WAIT_SECONDS_MAX) -> Iterator[Send]:
    """Datadog's client, as docs/protocols.md sets it: what it adds to its address becomes a query without a meaning."""
    configuration = datadog_api_client.Configuration(request_timeout=seconds_max)
    configuration.api_key["apiKeyAuth"] = "any"
    configuration.server_index = 1
    configuration.server_variables.update(protocol="http", name=f"127.0.0.1:{port}/api/logs/lines?")

    with datadog_api_client.ApiClient(configuration) as client:

        def send(numbers: range) -> int:
            items = [
                HTTPLogItem(message=f"EV{number}", service="shop", timestamp=time_of(number)) for number in numbers
            ]
            try:
                LogsApi(client).submit_log(HTTPLog(items))
            except ApiException as error:
                return int(error.status)
            return 202  # the only answer that it does not raise

        yield send


@contextlib.contextmanager
def with_cloudevents(port: int, seconds_max: float = WAIT_SECONDS_MAX) -> Iterator[Send]:
    """CloudEvents as a batch: each has an id of its own."""
    with requests.Session() as session:

        def send(numbers: range) -> int:
            events = [
                CloudEvent(
                    {"id": f"order-{number}", "source": "/shop", "type": "order", "specversion": "1.0",
                     "time": BEGAN + timedelta(milliseconds=number)},
                    {"msg": f"EV{number}"},
                )
                for number in numbers
            ]  # fmt: skip
            batch = [json.loads(to_structured_event(event).body) for event in events]
            return session.post(
                f"http://127.0.0.1:{port}/api/logs/lines", data=json.dumps(batch), timeout=seconds_max,
                headers={"Content-Type": "application/cloudevents-batch+json"},
            ).status_code  # fmt: skip

        yield send


def time_of(number: int) -> str:
    return (BEGAN + timedelta(milliseconds=number)).isoformat()


CLIENTS: Final[dict[str, Callable[..., contextlib.AbstractContextManager[Send]]]] = {
    "requests": with_requests,
    "httpx": with_httpx,
    "aiohttp": with_aiohttp,
    "datadog": with_datadog,
    "cloudevents": with_cloudevents,
}


class Program:
    """Sends batches one after the other, and repeats each until it is accepted. `seen`: what came of all tries."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.seen: Counter[str] = Counter()

    def run(self, numbers: range) -> None:
        for first in range(numbers.start, numbers.stop, BATCH):
            batch = range(first, first + BATCH)
            eventually(partial(self._is_accepted, batch), f"batch {first} is accepted")

    def _is_accepted(self, numbers: range) -> bool:
        try:
            status = self._send(numbers)
        except CUTS:
            self.seen["no answer"] += 1
            return False
        self.seen[str(status)] += 1
        return status == 202


def stored(edge: RunningIngest) -> list[str]:
    """The messages of what will be stored: of events with one id, one is."""
    found = {(record.event_id, record.message) for record in edge.records() if record.message.startswith("EV")}
    return sorted((message for _, message in found), key=lambda message: int(message[2:]))


@pytest.mark.parametrize("name", list(CLIENTS))
def test_all_is_stored_once_through_a_limit_a_cut_a_slow_answer_and_a_restart(name: str) -> None:
    # Given a bucket in a debt that it pays once a batch was refused, and a connection that is cut once after its events
    # are stored
    with running_ingest(rate_min=RATE, rate_max=RATE) as edge, contextlib.ExitStack() as stack:
        edge.owe(OWED)
        proxy = Proxy(edge.port).start()
        stack.callback(proxy.stop)
        proxy.swallow(b"POST", b"202 Accepted", times=1)
        program = Program(stack.enter_context(CLIENTS[name](proxy.port)))
        with ThreadPoolExecutor(1) as executor:
            sending = executor.submit(program.run, range(COUNT // 3))
            eventually(lambda: program.seen["429"] > 0, "a batch is refused")
            edge.pay()
            sending.result(WAIT_SECONDS_MAX)
        assert metric(edge.port, 'http_requests_total{status="429"}') == program.seen["429"] > 0
        assert proxy.counts.swallowed == program.seen["no answer"] == 1
        assert len(edge.records()) == OWED + 2 * BATCH, "the batch whose answer was lost came again"
        # And an answer that is slow
        proxy.blackhole()
        with CLIENTS[name](proxy.port, 0.2) as impatient, pytest.raises(SLOW):
            impatient(range(BATCH))
        proxy.restore()
        # When ingest is stopped and runs again while the program sends
        edge.stop()
        rest = threading.Thread(target=program.run, args=(range(COUNT // 3, COUNT),))
        rest.start()
        eventually(lambda: program.seen["no answer"] > 1, "the program has found no server")
        stack.enter_context(restarted(edge))
        rest.join(WAIT_SECONDS_MAX)
        # Then everything is stored, and nothing twice
        assert stored(edge) == [f"EV{number}" for number in range(COUNT)]
        assert program.seen["202"] == COUNT // BATCH
