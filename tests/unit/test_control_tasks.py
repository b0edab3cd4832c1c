"""The control loop's tasks, without a worker."""

import logging

import pytest

from pipeline.errors import SettingsError, StoreUnavailableError
from tasks import control


@pytest.mark.parametrize("error", [StoreUnavailableError("refused"), SettingsError("LOG_TOPIC is no topic")])
def test_a_tick_that_can_not_run_is_one_line_in_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    # Given a tick that fails, for a server that is away or for what was set up wrong
    @control._one_line_when_away
    def tick() -> None:
        raise error

    # When it runs / Then there is one line, and no traceback
    with caplog.at_level(logging.WARNING):
        tick()
    [record] = caplog.records
    assert (record.getMessage(), record.exc_info) == (f"tick: {error}", None)


def test_a_defect_is_no_set_up_error() -> None:
    @control._one_line_when_away
    def tick() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tick()
