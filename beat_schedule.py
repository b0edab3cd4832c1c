"""The Beat schedule, nothing else: the periodic tasks and their periods."""

from datetime import timedelta
from typing import Any

from pipeline.names import Queue
from pipeline.settings import Settings


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Celery's `beat_schedule` for these settings. Ticks have no expiry: it would depend on another host's clock."""

    def every(seconds: float, task: str) -> dict[str, Any]:
        return {
            "task": task,
            "schedule": timedelta(seconds=seconds),
            "options": {"queue": Queue.CONTROL.value},
        }

    schedule = {
        "regulate: lag to rate": every(settings.regulate_seconds, "sluice.regulate"),
        "probe: is PostgreSQL back?": every(settings.probe_seconds, "sluice.probe"),
        "measure: what PostgreSQL holds": every(settings.measure_seconds, "sluice.measure"),
        "hints: the net under drains": every(settings.hint_seconds, "sluice.send_hints"),
    }
    if settings.retention_days or settings.dead_letter_days or settings.log_keep_hours or settings.events_by_day:
        schedule["retention: delete what expired"] = every(settings.retention_seconds, "sluice.expire")
    return schedule
