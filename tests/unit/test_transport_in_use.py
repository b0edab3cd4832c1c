"""What a process that imports Celery's application uses for the broker, from its first connection on."""

import subprocess
import sys

import pytest

from checks.testbed.waiting import RUN_SECONDS_MAX
from stack.servers import ROOT


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("redis://127.0.0.1:1/0", "SluiceTransport"),
        ("rediss://127.0.0.1:1/0", "SluiceTransport"),
        ("redis+sentinel://127.0.0.1:1/master/0", "SluiceSentinelTransport"),
    ],
)
def test_the_application_uses_the_transport_that_drops_what_is_no_message(url: str, transport: str) -> None:
    # In a process of its own, since kombu remembers the transport of a scheme
    program = "from tasks.app import app; print(type(app.connection_for_read().transport).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={"REDIS_URL": url}, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.stdout == f"{transport}\n", done.stderr
