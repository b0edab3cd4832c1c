"""Real log lines through the client, at the default rate: each stored once, every field as it was sent."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX, wait_until
from support.site import Site

LOGHUB = ROOT.parent / "shared" / "data" / "loghub"


@pytest.fixture(scope="module")
def files() -> list[Path]:
    found = sorted(LOGHUB.glob("*.ndjson"))
    if not found:
        pytest.skip(f"no real log lines in {LOGHUB}")
    return found


def _content(event: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(event[name] for name in ("correlationId", "severity", "message", "source", "timestamp"))


def test_every_real_event_is_stored_once_with_every_field_as_sent(site: Site, files: list[Path]) -> None:
    # Given 16,000 real events, and a rate at which not all of them are admitted at once
    sent = [_content(json.loads(line)) for file in files for line in file.read_text().splitlines()]
    assert len(sent) == 16_000
    # When the client sends them
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ingest.client", *map(str, files)],
        cwd=ROOT,
        env={"INGEST_URL": site.system.url},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # The bucket gives a burst at once and then the rate: whoever was faster was refused, and came again
    took_seconds = time.monotonic() - started
    rate = site.settings.rate_max
    assert took_seconds > (len(sent) - rate * site.settings.burst_seconds) / rate * 0.97

    # Then PostgreSQL holds the same, no more and no less
    def stored() -> list[tuple[Any, ...]]:
        with contextlib.closing(psycopg2.connect(site.postgres.url)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT correlation_id, severity, message, source, (extract(epoch FROM event_time) * 1000)::bigint "
                "FROM log_events WHERE correlation_id ~ %s",
                (f"^({'|'.join(file.stem.lower() for file in files)})-[0-9]",),
            )
            return cursor.fetchall()

    wait_until(lambda: len(stored()) >= len(sent), "all are stored")
    assert sorted(stored()) == sorted(sent)
