"""An event is followed from its request to the batch that stored it, by what the processes logged."""

import json
import urllib.request
import uuid
from typing import Any

import psycopg2

from checks.testbed.processes import Program
from checks.testbed.waiting import WAIT_SECONDS_MAX
from support.site import Site


def _lines(program: Program) -> list[dict[str, Any]]:
    """What a process logged."""
    return [json.loads(line) for line in _whole_lines(program)]


def _whole_lines(program: Program) -> list[str]:
    """What a process logged, without a line that it is writing now."""
    return program.log().rpartition("\n")[0].splitlines()


def _with(program: Program, action: str, name: str) -> list[dict[str, Any]]:
    found = [line for line in _lines(program) if line.get("action") == action]
    return [line for line in found if line.get("request_id") == name or name in line.get("request_ids", [])]


def test_an_event_is_followed_from_its_request_to_its_batch(site: Site) -> None:
    # Given a request with a name, whose three events go to one partition
    name = f"follow-{uuid.uuid4().hex}"
    one = {"correlationId": name, "severity": "INFO", "message": "m", "source": "s", "timestamp": 1_700_000_000_000}
    request = urllib.request.Request(
        f"{site.system.url}/api/logs",
        data=json.dumps([one] * 3).encode(),
        headers={"Content-Type": "application/json", "X-Request-ID": name},
    )
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
        assert (answer.status, answer.headers["x-request-id"]) == (202, name)

    def rows() -> list[Any]:
        with psycopg2.connect(site.postgres.url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT log_partition, log_offset FROM log_events WHERE request_id = %s", (name,))
            return cursor.fetchall()

    site.system.wait(lambda: len(rows()) == 3, "its events are stored")
    # Then ingest named it, and so did the batches whose partition and offsets its rows have
    site.system.wait(lambda: bool(_with(site.system.ingest, "request_answered", name)), "its answer is named")
    [taken] = _with(site.system.ingest, "request_answered", name)
    assert (taken["process"], taken["level"], taken["code"]) == ("ingest", "DEBUG", "accepted")
    site.system.wait(lambda: bool(_with(site.system.batches, "batch_stored", name)), "the batch is named")
    batches = _with(site.system.batches, "batch_stored", name)
    for partition, offset in rows():
        [batch] = [b for b in batches if b["partition"] == partition and b["offset"] <= offset < b["next_offset"]]
        assert batch["process"].startswith("batches-")
        assert batch["task"] == "sluice.drain"


def test_every_line_of_every_process_is_json_with_the_same_fields(site: Site) -> None:
    assert _lines(site.system.ingest)
    assert _lines(site.system.control)
    wanted = {"time", "level", "logger", "process", "pid", "message"}
    for program in site.system.programs:
        lines = _whole_lines(program)
        # And nothing else, not even while Celery starts
        assert [line for line in lines if not line.startswith("{")] == []
        ours = [json.loads(line) for line in lines]
        assert all(wanted <= set(line) for line in ours)
        assert {line["process"].partition("-")[0] for line in ours} == {program.name}
