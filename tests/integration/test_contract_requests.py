"""What schemathesis makes of `/openapi.json`, sent to a real ingest process: answers are what the document says."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from checks.hostile.contract import Report
from checks.hostile.siege import environ
from checks.testbed.processes import ROOT, http_status, ingest
from checks.testbed.waiting import RUN_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from stack.servers import free_port


def test_every_answer_is_one_that_the_document_describes(settings: Settings, tmp_path: Path) -> None:
    # Given an ingest process with a rate that nobody notices
    program = ingest(replace(settings, ingest_port=free_port(), rate_max=1e6, rate_min=1e6), tmp_path)
    url = f"http://127.0.0.1:{program._environ['INGEST_PORT']}"
    program.start()
    try:
        wait_until(lambda: http_status(f"{url}/readyz") == 200, "ingest is ready")
        # When requests are made from the document, good and bad ones
        words = ["--short", "--cases", "250", "--seed", "7"]
        said = subprocess.run(
            [sys.executable, "-m", "checks.hostile.contract", url, *words],
            cwd=ROOT, env=environ(), capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr[-3000:]
        # Then each is answered as described, with every kind of answer among them
        report = Report.of(said.stdout)
        assert report.failures == {}, report.examples
        assert report.cases >= 200
        assert {202, 400, 415, 422} <= set(report.statuses) <= {202, 400, 413, 415, 422}
    finally:
        assert program.stop() == 0
    assert "defect" not in program.log()
