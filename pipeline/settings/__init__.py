"""Every setting: name, default, unit, limits and reason. The only package that reads the environment.

The object is frozen and passed in; see `Settings.from_environ`. A setting's name in the environment is its field's
name in capitals. Each area has a module: its settings, and which of their values contradict each other. An area that
needs another one inherits from it.
"""

from pipeline.settings.access import page_urls_of, public_problem
from pipeline.settings.accounts import (
    ACCOUNT_FIGURE_MIN,
    ACCOUNT_RATE_MAX,
    ACCOUNT_WEIGHT_MAX,
    figures_of,
    networks_of,
)
from pipeline.settings.environment import (
    ignore_variables_of_others,
    misspelled_settings,
    no_system_to_ask,
    system_that_was_stopped,
)
from pipeline.settings.http import origins_of
from pipeline.settings.kafka_link import oauth_extensions_of
from pipeline.settings.reading import read_secret
from pipeline.settings.settings import Settings

__all__ = [
    "ACCOUNT_FIGURE_MIN",
    "ACCOUNT_RATE_MAX",
    "ACCOUNT_WEIGHT_MAX",
    "Settings",
    "figures_of",
    "ignore_variables_of_others",
    "misspelled_settings",
    "networks_of",
    "no_system_to_ask",
    "oauth_extensions_of",
    "origins_of",
    "page_urls_of",
    "public_problem",
    "read_secret",
    "system_that_was_stopped",
]
