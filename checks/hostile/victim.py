"""One real ingest process that is attacked."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from checks.testbed.processes import Program, http_status, ingest
from checks.testbed.waiting import wait_until
from pipeline.settings import Settings
from stack.servers import free_port


class Victim:
    """A running ingest process."""

    def __init__(self, program: Program, settings: Settings) -> None:
        self.program = program
        self.settings = settings
        self.port = settings.ingest_port
        self.url = f"http://127.0.0.1:{settings.ingest_port}"


@contextlib.contextmanager
def running_victim(log_url: str, redis_url: str, folder: Path, **changes: float) -> Iterator[Victim]:
    """An ingest process on these servers, with a rate that limits no request; it must end without a defect."""
    settings = Settings(
        event_time_min_ms=0,  # the oracle judges bodies; it does not know the rule against times in seconds
        **{
            "redis_url": redis_url,
            "event_log_url": log_url,
            "key_prefix": f"{folder.name}:",
            "log_topic": folder.name,
            "ingest_port": free_port(),
            "rate_max": 1e6,
            "rate_min": 1e6,
            **changes,
        },  # type: ignore[arg-type]  # each its own type
    )
    victim = Victim(ingest(settings, folder).start(), settings)
    try:
        wait_until(lambda: http_status(f"{victim.url}/readyz") == 200, "ingest is ready", seconds_max=30)
        yield victim
    finally:
        status = victim.program.stop()
    log = victim.program.log()
    assert status == 0, log[-3000:]
    assert "defect" not in log, log[-3000:]
    assert "Traceback" not in log, log[-3000:]
