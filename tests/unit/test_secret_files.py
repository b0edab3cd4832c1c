"""A secret may be in a file: NAME_FILE instead of NAME."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.running import nothing_to_ask, with_running_system
from pipeline.settings import Settings

SECRETS = [field.name for field in dataclasses.fields(Settings) if field.metadata["is_secret"]]
VALUES = {
    "database_url": "postgresql://u:hunter2@h/d",
    "migrate_database_url": "postgresql://owner:hunter2@h/d",
    "redis_url": "redis://:hunter2@h:1/0",
    "event_log_url": "redis://:hunter2@h:2/0",
    "redis_sentinel_password": "hunter2 of the sentinels",
    "kafka_password": "hunter2 of the brokers",
    "kafka_oauth_client_secret": "hunter2 of the token service",
    "operator_password": "hunter2 of the operators",
    "ingest_key": "slc_hunter2",
}
# Settings without which another secret is refused.
WITH = {
    "kafka_oauth_client_secret": {
        "EVENT_LOG_URL": "kafka+ssl://h:1",
        "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
        "KAFKA_OAUTH_URL": "https://h/token",
        "KAFKA_OAUTH_CLIENT_ID": "ann",
    },
    "kafka_password": {"EVENT_LOG_URL": "kafka+ssl://h:1", "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_USER": "ann"},
    "redis_sentinel_password": {"REDIS_URL": "redis+sentinel://h:1/main/0"},
}


def test_the_secrets_are_those_that_may_hold_a_password() -> None:
    assert set(VALUES) == set(SECRETS)


@pytest.mark.parametrize("name", VALUES)
def test_a_secret_is_the_line_of_its_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{VALUES[name]}\r\n")
    settings = Settings.from_environ({f"{name.upper()}_FILE": str(file)} | WITH.get(name, {}))
    assert getattr(settings, name) == VALUES[name]
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"redis://hunter2\nredis://other\n", "more than one line"),
        ("redis://hunter2".encode("utf-16-le"), "characters that can't be printed"),
        (b"hunter2\xff", "is not UTF-8"),
    ],
)
def test_a_file_that_can_not_be_used_is_named_without_its_content(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=why) as raised:
        Settings.from_environ({"REDIS_URL_FILE": str(file)})
    assert f"REDIS_URL_FILE={str(file)!r}" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_secret_in_two_places_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("redis://:hunter2@h:1/0")
    with pytest.raises(SettingsError, match=r"REDIS_URL_FILE=.* are both set"):
        Settings.from_environ({"REDIS_URL": "redis://h:1/0", "REDIS_URL_FILE": str(file)})


def test_other_settings_have_no_file(tmp_path: Path) -> None:
    file = tmp_path / "number"
    file.write_text("7")
    assert Settings.from_environ({"RATE_MAX_FILE": str(file)}) == Settings()


def test_an_address_in_a_file_is_an_address(tmp_path: Path) -> None:
    environ = {"SLUICE_HOME": str(tmp_path), "REDIS_URL_FILE": "/run/secrets/redis"}
    assert nothing_to_ask(environ) is None
    assert with_running_system(environ) == environ
