"""The baseline that most people would write: FastAPI on uvicorn, a pydantic model, the project's log client behind it.

Two forms. `append`: each request calls the log client's `append` in the thread pool, under a lock, since the client
is for one thread. `group`: requests share the project's own group commit, so only the framework differs. This is the
harder baseline, and the goal is compared with it.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, Field
from uuid_utils import uuid7

from checks.bench.machine import SERVER_CORE, run_on
from ingest.appender import Appender
from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.event import Event, encode_record, partition_of, record_head
from pipeline.metrics import IngestMetrics
from pipeline.settings import Settings


class LogEvent(BaseModel):
    """The event of the contract, as pydantic checks it."""

    correlationId: str = Field(min_length=1, max_length=128)  # noqa: N815  # the names on the wire
    severity: str
    message: str = Field(max_length=64 * 1024)
    source: str = Field(min_length=1, max_length=256)
    timestamp: int = Field(ge=0)
    eventId: str | None = Field(default=None, min_length=1, max_length=64)  # noqa: N815
    attributes: dict[str, str | int | float | bool] | None = None


def _entry(event: LogEvent, partitions: int, now_ms: int) -> tuple[int, bytes]:
    record = Event(
        correlation_id=event.correlationId,
        severity=event.severity,
        message=event.message,
        source=event.source,
        timestamp=event.timestamp,
        event_id=event.eventId or str(uuid7()),
        attributes=event.attributes,
    )
    return partition_of(event.correlationId, partitions), encode_record(record, record_head(now_ms, "fastapi"))


def make_app(settings: Settings, form: str) -> FastAPI:
    """The application, in one of the two forms."""
    log, clock = wiring.make_log(settings), SystemClock()
    partitions = log.identity().partitions
    appender = Appender(log, settings, clock, IngestMetrics(CollectorRegistry()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if form == "group":
            appender.start(asyncio.get_running_loop())
            while not appender.status(clock.monotonic()).answers:  # noqa: ASYNC110  # it sends no signal
                await asyncio.sleep(0.01)
        yield
        if form == "group":
            await appender.close(seconds_max=2)
        log.close()

    app = FastAPI(lifespan=lifespan)
    if form == "group":

        async def group(event: LogEvent) -> dict[str, Any]:
            entry = _entry(event, partitions, int(clock.now() * 1000))
            await appender.append([entry], len(entry[1]))
            return {"accepted": 1}

        app.post("/api/logs", status_code=202)(group)
    else:
        lock = threading.Lock()

        def append(event: LogEvent) -> dict[str, Any]:
            entry = _entry(event, partitions, int(clock.now() * 1000))
            with lock:
                log.append([entry])
            return {"accepted": 1}

        app.post("/api/logs", status_code=202)(append)
    return app


if __name__ == "__main__":
    run_on(SERVER_CORE)
    uvicorn.run(
        make_app(Settings.from_environ(), sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="critical",
    )
