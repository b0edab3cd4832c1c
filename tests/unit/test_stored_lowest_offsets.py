"""The lowest offsets of a restarted log, when PostgreSQL is slow or fails."""

import threading
from unittest.mock import Mock

import pytest

from pipeline.errors import SinkUnavailableError
from pipeline.ports.control import Mirror
from pipeline.stored_lowest_offsets import StoredLowestOffsets


@pytest.fixture
def fence() -> Mock:
    """A fence whose mirror is complete: the stored offsets are read for a moment only."""
    return Mock(**{"fence.return_value": Mirror("life", {0: 5}, is_complete=True)})


def test_a_slow_postgresql_is_named_in_the_log(fence: Mock, caplog: pytest.LogCaptureFixture) -> None:
    # Given a PostgreSQL that does not answer until the test ends
    ended = threading.Event()

    def wait(_log_id: str) -> dict[int, int]:
        ended.wait()
        return {}

    lowest = StoredLowestOffsets(fence, lambda: Mock(stored_offsets=wait))
    # When the lowest offsets are read
    try:
        found = lowest("log", "incarnation")
    finally:
        ended.set()
    # Then they are those of the mirror, and the line says why
    assert found == {0: 5}
    assert "(no answer within 0.3 s)" in caplog.text


def test_to_import_the_client_takes_none_of_the_time_of_the_answer(fence: Mock) -> None:
    opened_by: list[threading.Thread] = []

    def open_offsets() -> Mock:
        opened_by.append(threading.current_thread())
        return Mock(**{"stored_offsets.return_value": {0: 7}})

    assert StoredLowestOffsets(fence, open_offsets)("log", "incarnation") == {0: 7}
    # Only what another thread does has a time limit
    assert opened_by == [threading.current_thread()]


def test_a_failing_postgresql_is_named_in_the_log(fence: Mock, caplog: pytest.LogCaptureFixture) -> None:
    failing = Mock(**{"stored_offsets.side_effect": SinkUnavailableError("connection refused")})
    assert StoredLowestOffsets(fence, lambda: failing)("log", "incarnation") == {0: 5}
    assert "(connection refused)" in caplog.text
