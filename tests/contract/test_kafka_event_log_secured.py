"""The core of what every event log keeps to, on Kafka with TLS and SCRAM."""

from collections.abc import Iterator

import pytest
from contract.test_event_log import (  # collected here too, on the rig below
    log,
    test_a_commit_is_for_the_log_that_it_names,
    test_a_trimmed_offset_reads_what_is_left_and_shows_it,
    test_a_waiting_read_wakes_for_a_new_record,
    test_append_runs_beside_a_waiting_read,
    test_close_may_come_again_and_is_not_the_end,
    test_everybody_sees_the_same_log,
    test_positions_follow_the_commits,
    test_records_come_back_whole_and_in_order,
    test_several_processes_append_at_once,
)

from checks.testbed.waiting import APPEND_SECONDS_LONGEST
from support.event_logs import KafkaRig, log_settings
from support.kafka_secured import SecuredKafka

__all__ = [
    "log",
    "test_a_commit_is_for_the_log_that_it_names",
    "test_a_trimmed_offset_reads_what_is_left_and_shows_it",
    "test_a_waiting_read_wakes_for_a_new_record",
    "test_append_runs_beside_a_waiting_read",
    "test_close_may_come_again_and_is_not_the_end",
    "test_everybody_sees_the_same_log",
    "test_positions_follow_the_commits",
    "test_records_come_back_whole_and_in_order",
    "test_several_processes_append_at_once",
]


@pytest.fixture
def rig(secured_kafka: SecuredKafka) -> Iterator[KafkaRig]:
    settings = secured_kafka.settings()
    made = KafkaRig(log_settings(settings.pop("event_log_url"), append_seconds_max=APPEND_SECONDS_LONGEST, **settings))
    yield made
    made.close()
