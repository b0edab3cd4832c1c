"""Settings of a system that stores in a database of a test's own."""

from typing import Any

from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS
from pipeline.settings import Settings


def sink_settings(database_url: str, **changes: Any) -> Settings:
    """Settings with time for each call of PostgreSQL on a busy machine, for a test of something else."""
    given: dict[str, Any] = {
        "database_url": database_url,
        "sink_call_seconds_max": PATIENT_SINK_SECONDS,
        "sink_connect_seconds_max": PATIENT_CONNECT_SECONDS,
    }
    return Settings(**given | changes)
