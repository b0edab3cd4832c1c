"""The control loop's tasks, without a worker."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import SettingsError, SinkMisconfiguredError, SinkStandbyError, StoreUnavailableError
from tasks import commands, control


@pytest.mark.parametrize("error", [StoreUnavailableError("refused"), SettingsError("LOG_TOPIC is no topic")])
def test_a_tick_that_can_not_run_is_one_line_in_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    # Given a tick that fails, for a server that is away or for what was set up wrong
    @control._one_line_when_unavailable
    def tick() -> None:
        raise error

    # When it runs / Then there is one line, and no traceback
    with caplog.at_level(logging.WARNING):
        tick()
    [record] = caplog.records
    assert (record.getMessage(), record.exc_info) == (f"tick: {error}", None)


@pytest.mark.parametrize(
    ("error", "is_named"), [(SinkStandbyError(), False), (SinkMisconfiguredError("it has the encoding LATIN1"), True)]
)
def test_a_standby_at_the_start_is_left_to_the_tick_and_migrated_later(error: Exception, is_named: bool) -> None:
    # Given a database that can't be migrated
    failing = [error]

    def migrate(wait_seconds: float) -> None:
        if failing:
            raise failing[0]

    context: Any = SimpleNamespace(
        is_migrated=False, schema_problem=None, server_problem=None, schema=SimpleNamespace(migrate=migrate),
        few_sessions=SimpleNamespace(look=lambda: None),
    )  # fmt: skip
    # When it is tried / Then the reason is repeated by each tick, unless a failover may be under way
    control._migrate_once(context)
    assert (context.server_problem is not None, context.is_migrated) == (is_named, False)
    failing.clear()
    control._migrate_once(context)
    assert (context.server_problem, context.is_migrated) == (None, True)


def test_a_defect_is_no_set_up_error() -> None:
    @control._one_line_when_unavailable
    def tick() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tick()


@pytest.mark.parametrize(
    "command",
    [
        lambda parts: commands.set_bands(parts, "ann", degraded=1, critical=2, rate_max=None, rate_min=None, why="w"),
        lambda parts: commands.reset_bands(parts, "ann", "w"),
    ],
)
def test_bands_do_not_replace_another_policy(command: Callable[[Any], str]) -> None:
    # Given a control worker with another policy: nothing but its settings may be used
    parts = SimpleNamespace(settings=SimpleNamespace(rate_policy="toy"))
    with pytest.raises(
        commands.CommandError, match=r"policy is toy .* nothing was changed.* set_rate_limit <events/s>"
    ):
        command(parts)
