"""The load test itself, in short, on a system that runs already."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from support.site import Site

pytestmark = pytest.mark.parametrize("started", ["redis"], indirect=True)


def load_test(site: Site, folder: Path, *words: str, database_url: str) -> "subprocess.CompletedProcess[str]":
    options = ["--url", site.system.url, "--duration", "20", "--out", str(folder), *words]
    return subprocess.run(
        [sys.executable, "-m", "checks.loadtest", *options],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )


def test_a_short_load_is_told_judged_and_checked(site: Site, tmp_path: Path) -> None:
    said = load_test(site, tmp_path, database_url=site.postgres.url)
    # Then each phase is told, and the whole is proven by what is stored
    for phase in ("normal:", "1.5 times the rate:", "5 times the rate:"):
        assert phase in said.stdout
    assert "p50, p99 of admitted:" in said.stdout
    if "NOT HELD" not in said.stdout:  # a busy machine may be too slow for it, and then it must say so
        assert said.returncode == 0, said.stdout + said.stderr
        assert "everything held" in said.stdout
    else:
        assert said.returncode == 1
    assert "not stored" not in said.stdout.replace("refused means not stored", "")
    page = (tmp_path / "load-report.html").read_text()
    assert "<svg" in page
    assert "1.5 times the rate" in page
    assert (tmp_path / "load-report.png").read_bytes().startswith(b"\x89PNG")
