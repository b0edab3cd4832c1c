"""What only a person can change: said in one line, once a minute, or refused at the start."""

from dataclasses import replace

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import LogMisconfiguredError, SettingsError
from pipeline.settings import Settings
from tasks.mistakes import AGAIN_SECONDS, Mistakes


def test_each_is_said_once_a_minute_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    mistakes = Mistakes(clock)
    for _ in range(5):
        mistakes.say(LogMisconfiguredError("the log has no partition 3"))
        mistakes.say(LogMisconfiguredError("the log has no partition 2"))
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["3", "2"]
    assert all(record.exc_info is None for record in caplog.records)
    clock.advance(AGAIN_SECONDS)
    mistakes.say(LogMisconfiguredError("the log has no partition 3"))
    assert len(caplog.records) == 3


@pytest.mark.parametrize("name", ["my topic", "größe", ".", "..", "a/b", "x" * 250])
def test_a_topic_that_kafka_does_not_allow_is_a_mistake_in_the_settings(name: str) -> None:
    with pytest.raises(SettingsError, match=r"LOG_TOPIC=.* is no name of a Kafka topic"):
        replace(Settings(), event_log_url="kafka://localhost:9092", log_topic=name)
    replace(Settings(), log_topic=name)  # Redis has no topics


@pytest.mark.parametrize("name", ["sluice-events", "a", "...", "A.b_c-9", "x" * 249])
def test_a_topic_that_kafka_allows(name: str) -> None:
    replace(Settings(), event_log_url="kafka://localhost:9092", log_topic=name)
