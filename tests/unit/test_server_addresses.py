"""An address that is wrong: each error names the setting that has it, and none shows its password."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline import wiring
from pipeline.__main__ import main as status
from pipeline.errors import SettingsError, SluiceError
from pipeline.redis_link import make_pool
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema
from pipeline.sink.session import connect
from tasks.app import make_app

PASSWORD = "odd-Passw0rd"
NOBODY = "127.0.0.1:1"
UNKNOWN = "no-such-host.invalid"


def control_store(settings: Settings) -> None:
    wiring.make_control_store(settings, reads_keys=False).state()


def event_log(settings: Settings) -> None:
    log = wiring.make_log(settings)
    try:
        log.identity()
    finally:
        log.close()


def migration(settings: Settings) -> None:
    PostgresSchema(settings).migrate(wait_seconds=1.0)


@pytest.mark.parametrize("place", [NOBODY, UNKNOWN])
@pytest.mark.parametrize(
    ("name", "scheme", "ask"),
    [
        ("database_url", "postgresql", connect),
        ("database_url", "postgresql", migration),
        ("redis_url", "redis", control_store),
        ("event_log_url", "redis", event_log),
        ("event_log_url", "kafka", event_log),
    ],
)
def test_an_address_without_a_server_is_named_with_its_setting(
    name: str, scheme: str, ask: Callable[[Settings], Any], place: str
) -> None:
    login = "" if scheme == "kafka" else f"sluice:{PASSWORD}@"
    settings = Settings.from_environ({name.upper(): f"{scheme}://{login}{place}/0".removesuffix("/0" * (not login))})
    with pytest.raises(SluiceError) as caught:
        ask(settings)
    words = str(caught.value)
    assert name.upper() in words
    assert place.partition(":")[0] in words
    assert PASSWORD not in words


def test_the_setting_is_that_of_the_role_which_connects() -> None:
    owner, user = (f"postgresql://{name}:{PASSWORD}@{NOBODY}/x" for name in ("owner", "user"))
    settings = Settings(database_url=owner, migrate_database_url=owner)
    with pytest.raises(SluiceError, match="at MIGRATE_DATABASE_URL"):
        connect(settings)
    with pytest.raises(SluiceError, match="at DATABASE_URL"):
        connect(Settings(database_url=user, migrate_database_url=owner))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("database_url", "postgresql"),
        ("migrate_database_url", "postgresql"),
        ("redis_url", "redis"),
        ("event_log_url", "redis"),
        ("event_log_url", "kafka"),
    ],
)
@pytest.mark.parametrize("place", ["host:99999", "host:0", "ho..st", f"{'h' * 64}.example:5000"])
def test_a_host_or_a_port_that_can_not_exist_is_refused_at_the_start(name: str, scheme: str, place: str) -> None:
    login = "" if scheme == "kafka" else f"sluice:{PASSWORD}@"
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({name.upper(): f"{scheme}://{login}{place}"})
    assert f"{name.upper()} has " in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["%2Frun%2F" + "x" * 80, "%2Frun%2Fa..b", "%40sluice..1", "host.example.", "redis_log"]
)
def test_a_host_that_is_the_path_of_a_socket_is_no_name(place: str) -> None:
    Settings.from_environ({"DATABASE_URL": f"postgresql://sluice@{place}/x"})


@pytest.mark.parametrize(
    "options", ["application=x", "socket_timeout=soon", "db=first"], ids=["unknown", "no number", "no database"]
)
@pytest.mark.parametrize("name", ["redis_url", "event_log_url"])
def test_an_option_that_no_connection_to_redis_has_is_named(name: str, options: str) -> None:
    settings = Settings.from_environ({name.upper(): f"redis://sluice:{PASSWORD}@{NOBODY}/0?{options}"})
    with pytest.raises(SettingsError) as caught:
        make_pool(settings, name)
    words = str(caught.value)
    assert name.upper() in words
    assert options.partition("=")[0] in words
    assert "__init__" not in words
    assert PASSWORD not in words


@pytest.mark.parametrize("option", ["socket_timeout", "application"])
def test_an_option_of_redis_that_celery_does_not_take_is_named(option: str) -> None:
    # Beat would end in a traceback, and redis-py takes the first one
    settings = Settings.from_environ({"REDIS_URL": f"redis://sluice:{PASSWORD}@{NOBODY}/0?{option}=5"})
    with pytest.raises(SettingsError, match=f"REDIS_URL has the option {option}, which Celery does not take"):
        make_app(settings)


def test_status_ends_with_one_line_where_the_event_log_can_not_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENT_LOG_URL", f"redis://sluice:{PASSWORD}@{NOBODY}/0?application=x")
    assert status(["status"]) == 3
    assert capsys.readouterr().err == "EVENT_LOG_URL has the option application, which its client does not take\n"


@pytest.mark.parametrize("path", ["/main", "/0/1", "/-1"])
@pytest.mark.parametrize("name", ["redis_url", "event_log_url"])
def test_a_database_of_redis_is_a_number(name: str, path: str) -> None:
    # redis-py would use database 0, and Celery would refuse to begin
    with pytest.raises(SettingsError, match=f"{name.upper()} names the database"):
        Settings.from_environ({name.upper(): f"redis://{NOBODY}{path}"})


@pytest.mark.parametrize("options", ["sslmode=sometimes", "bogus=1", "port=abc", "connect_timeout=soon"])
def test_an_option_that_libpq_does_not_take_is_named_with_the_setting(options: str) -> None:
    settings = Settings.from_environ({"DATABASE_URL": f"postgresql://sluice:{PASSWORD}@{NOBODY}/x?{options}"})
    with pytest.raises(SluiceError) as caught:
        connect(settings)
    assert "at DATABASE_URL: " in str(caught.value)
    assert PASSWORD not in str(caught.value)
