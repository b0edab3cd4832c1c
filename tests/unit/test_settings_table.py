"""The table of settings says what is there, about every setting, in words."""

import dataclasses
import re

import pytest

from checks.testbed.processes import ROOT
from pipeline.settings import Settings
from pipeline.settings_table import table, unit_of

FIELDS = dataclasses.fields(Settings)


def test_the_page_is_what_the_settings_say() -> None:
    written = (ROOT / "docs" / "settings.md").read_text()
    assert written == table(), "settings have changed: python -m pipeline.settings_table > docs/settings.md"


def test_every_setting_stands_once_below_a_heading() -> None:
    body = table().split("\n## ", 1)[1]
    assert re.findall(r"^\| `([A-Z_]+)` \|", body, re.MULTILINE) == [field.name.upper() for field in FIELDS]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_setting_says_what_it_does_and_when_to_change_it(field: "dataclasses.Field[object]") -> None:
    assert len(field.metadata["why"].split()) >= 2
    assert field.metadata["when"], f"{field.name}: say when one would change it (setting's `when`)"
    is_number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
    if is_number:
        assert field.metadata["low"] is not None
        assert unit_of(field) or field.name.endswith("_port"), f"{field.name}: no unit in its name, and none declared"


def test_the_readers_defaults_are_taken_as_they_are_typed() -> None:
    # Given each default as the table shows it, in the environment
    shown = dict(re.findall(r"^\| `([A-Z_]+)` \| `?([^`|]*?)`? \|", table(), re.MULTILINE))
    assert Settings.from_environ(shown) == Settings()
