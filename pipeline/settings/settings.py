"""The settings of all areas as one object."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pipeline.running import with_running_system
from pipeline.settings.access import (
    ApiKeySettings,
    OperatorSettings,
    client_certificate_problems,
    operator_problems,
)
from pipeline.settings.accounts import AccountSettings, account_problems
from pipeline.settings.append import AppendSettings
from pipeline.settings.control_loop import ControlLoopSettings, control_loop_problems, defaults_of_policy
from pipeline.settings.drain import DrainSettings, drain_problems
from pipeline.settings.event_log import EventLogSettings, kafka_log_problems, log_keep_problems
from pipeline.settings.field import limit_problems
from pipeline.settings.http import HttpSettings, http_problems
from pipeline.settings.kafka_link import KafkaLinkSettings, kafka_link_problems
from pipeline.settings.log_lines import LogLineSettings
from pipeline.settings.metrics import MetricsSettings
from pipeline.settings.reading import raise_for, values_in
from pipeline.settings.redis_link import RedisLinkSettings, redis_link_problems
from pipeline.settings.retention import RetentionSettings, retention_problems
from pipeline.settings.servers import ServerSettings, server_url_problems, sink_url_problems
from pipeline.settings.task_queue import TaskQueueSettings, signing_problems


# A dataclass has the fields of its last base first: docs/settings.md has these areas from the last to the first.
@dataclass(frozen=True, kw_only=True)
class Settings(
    TaskQueueSettings,
    MetricsSettings,
    RetentionSettings,
    ControlLoopSettings,
    DrainSettings,
    EventLogSettings,
    AppendSettings,
    AccountSettings,
    ApiKeySettings,
    OperatorSettings,
    HttpSettings,
    LogLineSettings,
    RedisLinkSettings,
    KafkaLinkSettings,
    ServerSettings,
):
    """All settings of all processes. The unit is the last part of a name."""

    def __post_init__(self) -> None:
        raise_for([*limit_problems(self), *_contradictions(self)])

    @classmethod
    def for_commands(cls) -> Self:
        """The settings for a command in a shell: if the shell has no addresses, those of the system that runs here.

        Raises SettingsError, as `from_environ` does.
        """
        return cls.from_environ(with_running_system(os.environ))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings; a variable that is unset or empty takes its default.

        Raises SettingsError, which names every wrong variable, its value and the allowed values.
        """
        values = values_in(os.environ if environ is None else environ, cls)
        return cls(**{**defaults_of_policy(values.get("rate_policy", "")), **values})


def _contradictions(settings: Settings) -> Iterator[str]:
    """Values that contradict each other."""
    yield from control_loop_problems(settings)
    yield from drain_problems(settings)
    url_problems = list(server_url_problems(settings))
    yield from url_problems
    yield from sink_url_problems(settings)
    yield from log_keep_problems(settings)
    yield from retention_problems(settings)
    yield from http_problems(settings)
    yield from account_problems(settings)
    yield from client_certificate_problems(settings)
    yield from operator_problems(settings)
    yield from signing_problems(settings)
    if url_problems:
        return  # what links and the log need depends on the URLs
    yield from redis_link_problems(settings)
    if settings.log_scheme == "kafka":
        yield from kafka_log_problems(settings)
        yield from kafka_link_problems(settings)
