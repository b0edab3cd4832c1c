"""Flower's options that rest on how workers are configured."""

import runpy

import pytest

from pipeline.settings import Settings
from stack.servers import ROOT
from tasks.app import celery_settings


def test_flower_wakes_no_worker_to_ask_for_events_that_it_sends_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLOWER_ADDRESS", "SLUICE_FLOWER_BASIC_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    options = runpy.run_path(str(ROOT / "monitoring/flowerconfig.py"))
    assert celery_settings(Settings())["worker_send_task_events"] is True
    assert options["enable_events"] is False
