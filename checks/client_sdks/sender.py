"""A program that logs with one SDK: `python -m checks.client_sdks.sender SDK PORT SCENARIO SECONDS EVENTS`.

When it begins to end, it prints the longest call in milliseconds on one line. The SDKs have their defaults, with a
larger queue if there is a setting for it. Sentry's buffer of log records has no such setting.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

Emit = Callable[[str], Any]


def _sluice(port: int, events: int) -> Emit:
    from sluice_client import Client

    client = Client(f"http://127.0.0.1:{port}", source="app")
    return client.emit


def _opentelemetry(port: int, events: int) -> Emit:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider()
    exporter = OTLPLogExporter(f"http://127.0.0.1:{port}/v1/logs")
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=4 * events))
    logger = logging.getLogger("app")
    logger.propagate = False
    logger.setLevel("INFO")
    logger.addHandler(LoggingHandler(logger_provider=provider))
    return logger.info


def _sentry(port: int, events: int) -> Emit:
    import sentry_sdk
    import sentry_sdk.logger

    sentry_sdk.init(
        dsn=f"http://key@127.0.0.1:{port}/1",
        enable_logs=True,
        default_integrations=True,
        transport_queue_size=4 * events,
    )
    emit: Emit = sentry_sdk.logger.info
    return emit


def _posthog(port: int, events: int) -> Emit:
    import posthog

    client = posthog.Posthog("key", host=f"http://127.0.0.1:{port}", max_queue_size=4 * events)
    return lambda text: client.capture("log", distinct_id="app", properties={"text": text})


SDKS: Final[dict[str, Callable[[int, int], Emit]]] = {
    "sluice-client": _sluice,
    "OpenTelemetry": _opentelemetry,
    "Sentry": _sentry,
    "PostHog": _posthog,
}


def main() -> None:
    sdk, port, scenario, seconds, events = (
        sys.argv[1],
        int(sys.argv[2]),
        sys.argv[3],
        float(sys.argv[4]),
        int(sys.argv[5]),
    )
    emit = SDKS[sdk](port, events)
    longest = 0.0

    def send(who: str, first: int, last: int, pause_seconds: float = 0.0) -> None:
        nonlocal longest
        for number in range(first, last):
            started = time.monotonic()
            emit(f"evt-{who}-{number}-x")
            longest = max(longest, time.monotonic() - started)
            time.sleep(pause_seconds)

    match scenario:
        case "exit":
            send("parent", 0, events)
        case "fork":
            send("parent", 0, events // 4)
            time.sleep(2)  # a thread runs, and a connection is open
            send("parent", events // 4, events // 2)
            child = os.fork()
            if child == 0:
                send("child", 0, events // 4)
                sys.exit(0)
            send("parent", events // 2, events * 3 // 4)
            os.waitpid(child, 0)
        case _:  # events come while the server does not accept them, and for some time after
            send("parent", 0, events, pause_seconds=(seconds + 5) / events)
            time.sleep(10)  # the server works again
    print(longest * 1000, flush=True)


if __name__ == "__main__":
    main()
